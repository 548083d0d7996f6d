/* pong: sleeps in a long receive, and answers each ping at once. */
#include "cbor.h"
#include "guest.h"

/* The longest that the host allows. A message or a stop ends it at once: a short timeout would gain nothing. */
#define PATIENCE_MS 60000
#define LOG_EVERY 25 /* answers: five seconds with one ping */

static uint8_t inbox[16 * 1024];

static void answer(const struct message *ping) {
    uint8_t buf[16];
    struct cbor_out out = cbor_out(buf, sizeof buf);
    uint64_t n;
    if (!cbor_find_uint(ping->payload, TEXT("n"), &n)) {
        say(CAPSULE_LOG_WARN, "%.*s sent a ping without a number", (int)ping->source.len, ping->source.at);
        return;
    }
    cbor_put_map(&out, 1);
    cbor_put_text(&out, TEXT("n"));
    cbor_put_uint(&out, n);
    /* Caused by the ping: who asked (the principal) travels on with the answer. A refused answer is
     * lost, as messages may be; the next receive is the pause. */
    if (capsule_ipc_publish_caused(TEXT("pong.reply"), buf, out.len, ping->seq) < 0)
        say_refusal(CAPSULE_LOG_WARN, "cannot answer");
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t answered = 0;
    uint32_t requests = subscribe(TEXT("ping.request"));
    capsule_ready();
    for (;;) {
        struct envelope envelope;
        struct message message;
        int32_t received = receive(requests, PATIENCE_MS, inbox, sizeof inbox);
        if (received == -CAPSULE_ECANCELED) return;
        if (!envelope_open(&envelope, inbox, (uint32_t)received)) continue;
        if (envelope.dropped + envelope.lagged) say(CAPSULE_LOG_WARN, "some pings were lost: too many at once");
        while (envelope_next(&envelope, &message)) {
            answer(&message);
            if (++answered % LOG_EVERY == 0) say(CAPSULE_LOG_INFO, "%u pings answered", answered);
        }
    }
}
