/* ping: asks five times a second, and receives until it is time to ask again. */
#include "cbor.h"
#include "guest.h"

#define INTERVAL_MS 200
#define LOG_EVERY 25 /* pings: five seconds */

static uint8_t inbox[16 * 1024];

static uint32_t asked, answered, lost, out_of_order;
static int64_t asked_at;
static uint32_t round_trip_us;

static void ask(void) {
    uint8_t buf[16];
    struct cbor_out out = cbor_out(buf, sizeof buf);
    cbor_put_map(&out, 1);
    cbor_put_text(&out, TEXT("n"));
    cbor_put_uint(&out, ++asked);
    asked_at = capsule_monotonic_ns();
    /* Refused (-CAPSULE_EAGAIN, -CAPSULE_EDQUOT)? Then this ping is lost, and the wait before the next
     * one is the pause that the refusal asks for. */
    if (capsule_ipc_publish(TEXT("ping.request"), buf, out.len) < 0) say_refusal(CAPSULE_LOG_WARN, "cannot ping");
}

static void hear(uint32_t received) {
    static uint64_t last;
    struct envelope envelope;
    struct message message;
    uint64_t n;
    if (!envelope_open(&envelope, inbox, received)) return;
    lost += (uint32_t)(envelope.dropped + envelope.lagged);
    while (envelope_next(&envelope, &message)) {
        if (!cbor_find_uint(message.payload, TEXT("n"), &n)) continue;
        if (n <= last) out_of_order++;
        last = n;
        answered++;
        if (n == asked) round_trip_us = (uint32_t)((capsule_monotonic_ns() - asked_at) / 1000);
    }
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t replies = subscribe(TEXT("pong.reply"));
    capsule_ready();
    for (;;) {
        ask();
        int64_t due = asked_at + INTERVAL_MS * NS_PER_MS;
        for (int64_t left; (left = due - capsule_monotonic_ns()) > 0;) {
            int32_t received = receive(replies, (uint32_t)(left / NS_PER_MS) + 1, inbox, sizeof inbox);
            if (received == -CAPSULE_ECANCELED) return;
            hear((uint32_t)received);
        }
        if (asked % LOG_EVERY == 0)
            say(CAPSULE_LOG_INFO, "%u pings, %u pongs, %u lost, %u out of order; the last round trip took %u us", asked,
                answered, lost, out_of_order, round_trip_us);
    }
}
