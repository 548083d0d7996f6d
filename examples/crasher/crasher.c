/* crasher (misbehaves): is ready, waits two seconds, and traps. The supervisor restarts it, again and again. */
#include "guest.h"

#define LIFE_MS 2000

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t silence = subscribe(TEXT("crasher-clock.silence"));
    capsule_ready();
    if (wait_ms(silence, LIFE_MS) == -CAPSULE_ECANCELED) return; /* stopped in time: an end without a failure */
    say(CAPSULE_LOG_WARN, "crashing now");
    __builtin_trap();
}
