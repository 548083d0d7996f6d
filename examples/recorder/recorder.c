/* recorder: several subscriptions at once, lowest and highest value of each room, and a check for gaps. */
#include "cbor.h"
#include "guest.h"

#define PERIOD_MS 1000 /* once a second is often enough to empty the queues: 10 readings a room */
#define LOG_EVERY 10   /* periods */

#define ROOMS_MAX 8

static struct room {
    uint32_t handle;
    uint64_t next, readings, lost, gaps;
    int64_t low, high;
} rooms[ROOMS_MAX];

static uint8_t inbox[64 * 1024];

static void record(struct room *room, uint32_t received) {
    struct envelope envelope;
    struct message message;
    uint64_t n;
    int64_t value;
    if (!envelope_open(&envelope, inbox, received)) return;
    room->lost += envelope.dropped + envelope.lagged;
    while (envelope_next(&envelope, &message)) {
        if (!cbor_find_uint(message.payload, TEXT("n"), &n)) continue;
        if (!cbor_find_int(message.payload, TEXT("millidegrees"), &value)) continue;
        /* The first reading may have any number; a sensor that was restarted begins at 0 again. */
        if (room->readings && n && n != room->next) room->gaps++;
        if (!room->readings || value < room->low) room->low = value;
        if (!room->readings || value > room->high) room->high = value;
        room->next = n + 1;
        room->readings++;
    }
}

/* Subscribes to each topic of [config] topics. The grant is `sensor.*.temperature`; a subscription can't
 * have a wildcard in the middle, but each of these exact topics is covered by that grant. */
static uint32_t subscribe_all(void) {
    uint8_t buf[1024];
    int32_t size = capsule_config_get(TEXT("topics"), buf, sizeof buf);
    if (size < 0) give_up("cannot read [config] topics");
    struct cbor list = cbor_in(buf, (uint32_t)size);
    struct cbor_text topic;
    uint64_t left = 0;
    uint32_t count = 0;
    for (cbor_array(&list, &left); left && count < ROOMS_MAX && cbor_text(&list, &topic); left--)
        rooms[count++].handle = subscribe(topic.at, topic.len);
    if (!count) give_up("[config] topics is not a list of texts");
    return count;
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t count = subscribe_all();
    /* One can wait on one handle only. This one is silent (nobody is granted to publish it), so that
     * waiting on it paces the loop, and the others are polled. */
    uint32_t silence = subscribe(TEXT("recorder-clock.silence"));
    capsule_ready();
    for (uint32_t period = 1;; period++) {
        if (wait_ms(silence, PERIOD_MS) == -CAPSULE_ECANCELED) return;
        for (uint32_t i = 0; i < count; i++) {
            int32_t received = capsule_ipc_poll(rooms[i].handle, inbox, sizeof inbox);
            if (received < 0) give_up("cannot poll");
            record(&rooms[i], (uint32_t)received);
            if (period % LOG_EVERY == 0)
                say(rooms[i].gaps ? CAPSULE_LOG_WARN : CAPSULE_LOG_INFO,
                    "subscription %u: %u readings from %d to %d millidegrees, %u lost, %u gaps", rooms[i].handle,
                    (uint32_t)rooms[i].readings, (int)rooms[i].low, (int)rooms[i].high, (uint32_t)rooms[i].lost,
                    (uint32_t)rooms[i].gaps);
        }
    }
}
