/* flooder (misbehaves): publishes as fast as it can, far beyond the rate that its manifest grants. A refused
 * publish costs it no quota and the others nothing; a well-behaved capsule would wait after it. */
#include "cbor.h"
#include "guest.h"

#define LOG_EVERY_NS (5000LL * NS_PER_MS)

CAPSULE_EXPORT("run")
void run(void) {
    uint8_t buf[16];
    uint32_t published = 0, refused = 0, other = 0;
    int64_t log_at = capsule_monotonic_ns() + LOG_EVERY_NS;
    capsule_ready();
    while (!capsule_cancelled()) { /* it never blocks, so it has to ask */
        struct cbor_out out = cbor_out(buf, sizeof buf);
        cbor_put_uint(&out, published);
        int32_t result = capsule_ipc_publish(TEXT("flood.noise"), buf, out.len);
        if (result == 0) published++;
        else if (result == -CAPSULE_EDQUOT) refused++;
        else if (other++ == 0) say_refusal(CAPSULE_LOG_WARN, "not the refusal that I expected (said once)");
        if (capsule_monotonic_ns() < log_at) continue;
        log_at += LOG_EVERY_NS;
        say(CAPSULE_LOG_INFO, "%u published, %u refused over the rate, %u for another reason", published, refused,
            other);
    }
}
