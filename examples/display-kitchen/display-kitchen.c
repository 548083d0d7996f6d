/* display: shows readings now and then. Which ones, its manifest says: [config] pattern. */
#include "cbor.h"
#include "guest.h"

#define PATIENCE_MS 60000

static uint8_t inbox[64 * 1024];

/* A key of [config] as one CBOR item; it lies in `buf`. */
static struct cbor config(const char *key, uint32_t len, void *buf, uint32_t cap) {
    int32_t size = capsule_config_get(key, len, buf, cap);
    if (size < 0) give_up("cannot read the configuration");
    return cbor_in(buf, (uint32_t)size);
}

static void show(const struct message *message) {
    int64_t value;
    if (!cbor_find_int(message->payload, TEXT("millidegrees"), &value)) return;
    /* Thousandths to tenths by hand: numbers after a point need no floating point. */
    int32_t tenths = (int32_t)(value / 100);
    uint32_t size = tenths < 0 ? 0 - (uint32_t)tenths : (uint32_t)tenths;
    say(CAPSULE_LOG_INFO, "%.*s: %s%u.%u degrees", (int)message->topic.len, message->topic.at, tenths < 0 ? "-" : "",
        size / 10, size % 10);
}

CAPSULE_EXPORT("run")
void run(void) {
    uint8_t buf[300]; /* a pattern has 256 bytes at most */
    struct cbor item;
    struct cbor_text pattern;
    uint64_t every, seen = 0;

    item = config(TEXT("every"), buf, sizeof buf);
    if (!cbor_uint(&item, &every) || every == 0) every = 1;
    item = config(TEXT("pattern"), buf, sizeof buf);
    if (!cbor_text(&item, &pattern)) give_up("[config] pattern is not a text");

    uint32_t readings = subscribe(pattern.at, pattern.len);
    capsule_ready();
    for (;;) {
        struct envelope envelope;
        struct message message;
        int32_t received = receive(readings, PATIENCE_MS, inbox, sizeof inbox);
        if (received == -CAPSULE_ECANCELED) return;
        if (!envelope_open(&envelope, inbox, (uint32_t)received)) continue;
        if (envelope.dropped + envelope.lagged)
            say(CAPSULE_LOG_WARN, "%u readings lost", (uint32_t)(envelope.dropped + envelope.lagged));
        while (envelope_next(&envelope, &message))
            if (seen++ % every == 0) show(&message);
    }
}
