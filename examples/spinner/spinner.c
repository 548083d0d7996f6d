/* spinner (misbehaves): says that it is ready, then computes for ever and never calls the host again. It hears
 * no cancel, and a signal handler of the engine's host would never run: only a kill from outside ends it. */
#include "guest.h"

CAPSULE_EXPORT("run")
void run(void) {
    say(CAPSULE_LOG_INFO, "spinning from now on: this is my last word");
    capsule_ready();
    for (;;) {}
}
