/* The same program as display-kitchen: the two differ in their manifests only. */
#include "../display-kitchen/display-kitchen.c"
