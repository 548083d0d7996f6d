/* grower (misbehaves): takes memory until it is refused, writes to every page of it, and keeps it. */
#include "guest.h"

#define PAGE 65536
#define TOUCH 4096 /* the operating system gives memory in pages of this size, when they are written */

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t silence = subscribe(TEXT("grower-clock.silence"));
    capsule_ready();
    for (;;) {
        /* A refused growth is a value, -1, and no trap: the manifest's [limits] memory is the module's maximum. */
        uint32_t page = (uint32_t)__builtin_wasm_memory_grow(0, 1);
        if (page == UINT32_MAX) break;
        for (uint32_t at = 0; at < PAGE; at += TOUCH) *(volatile uint8_t *)(page * PAGE + at) = 1;
        if ((page & (page + 1)) == 0) /* each time that it has doubled */
            say(CAPSULE_LOG_INFO, "%u KiB and growing", (page + 1) * (PAGE / 1024));
        if (capsule_cancelled()) return;
    }
    say(CAPSULE_LOG_INFO, "memory.grow was refused at %u KiB; I keep them",
        (uint32_t)__builtin_wasm_memory_size(0) * (PAGE / 1024));
    while (wait_ms(silence, 60000) != -CAPSULE_ECANCELED) {}
}
