/* audit: an interceptor. The manifest subscribes it to `calc.*` before its first instruction; here it finds
 * the handle of that subscription, counts what it sees, and checks on whose behalf the answers were sent. */
#include "cbor.h"
#include "guest.h"

#define PATIENCE_MS 60000
#define LOG_EVERY 100 /* messages */

static uint8_t inbox[64 * 1024];

static uint32_t requests, replies, others, lost;

/* The handle of the interceptor with this action. The runtime owns it: it can't be unsubscribed. */
static uint32_t interceptor(const char *action, uint32_t len) {
    uint8_t buf[1024];
    int32_t size = capsule_ipc_interceptors(buf, sizeof buf);
    if (size < 0) give_up("cannot list the interceptors");
    struct cbor list = cbor_in(buf, (uint32_t)size), entry;
    struct cbor_text name;
    uint64_t left = 0, handle;
    for (cbor_array(&list, &left); left && cbor_item(&list, &entry); left--)
        if (cbor_find_text(entry, TEXT("action"), &name) && cbor_is(name, action, len) &&
            cbor_find_uint(entry, TEXT("handle_id"), &handle))
            return (uint32_t)handle;
    give_up("the manifest has no interceptor with this action");
}

static int begins(struct cbor_text text, const char *prefix, uint32_t len) {
    text.len = text.len < len ? text.len : len;
    return cbor_is(text, prefix, len);
}

static void count(const struct message *message) {
    if (begins(message->topic, TEXT("calc.request."))) {
        requests++;
    } else if (begins(message->topic, TEXT("calc.reply."))) {
        replies++;
        /* The calculator names its cause, so that an answer carries the principal of who asked. */
        if (cbor_is(message->principal, TEXT("calculator")))
            say(CAPSULE_LOG_WARN, "an answer on the calculator's own behalf: it named no cause");
    } else {
        others++;
    }
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t seen = 0;
    uint32_t handle = interceptor(TEXT("on_calc"));
    capsule_ready();
    for (;;) {
        struct envelope envelope;
        struct message message;
        int32_t received = receive(handle, PATIENCE_MS, inbox, sizeof inbox);
        if (received == -CAPSULE_ECANCELED) return;
        if (!envelope_open(&envelope, inbox, (uint32_t)received)) continue;
        lost += (uint32_t)(envelope.dropped + envelope.lagged);
        while (envelope_next(&envelope, &message)) {
            count(&message);
            if (++seen % LOG_EVERY == 0)
                say(CAPSULE_LOG_INFO, "%u requests, %u replies, %u others, %u lost; the last for %.*s", requests,
                    replies, others, lost, (int)message.principal.len, message.principal.at);
        }
    }
}
