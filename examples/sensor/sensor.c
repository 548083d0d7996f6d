/* sensor: publishes the temperature of five rooms in turn, fifty readings a second in all. */
#include "cbor.h"
#include "guest.h"

#define INTERVAL_MS 20
#define LOG_EVERY 500 /* readings: ten seconds */

#define ROOMS 5

static const struct room {
    const char *topic;
    uint32_t len;
} rooms[ROOMS] = {
    {TEXT("sensor.attic.temperature")},   {TEXT("sensor.bath.temperature")},   {TEXT("sensor.cellar.temperature")},
    {TEXT("sensor.kitchen.temperature")}, {TEXT("sensor.office.temperature")},
};

static int32_t millidegrees[ROOMS] = {26000, 22000, 12000, 21000, 20000};

/* Up or down by a tenth of a degree, so that there is something to see. */
static int32_t measure(uint32_t room) {
    uint8_t coin;
    capsule_random(&coin, sizeof coin);
    return millidegrees[room] += coin & 1 ? 100 : -100;
}

static int32_t publish(uint32_t room, uint32_t n) {
    uint8_t buf[40];
    struct cbor_out out = cbor_out(buf, sizeof buf);
    cbor_put_map(&out, 2);
    cbor_put_text(&out, TEXT("n"));
    cbor_put_uint(&out, n); /* the room's readings are numbered, so that who misses one knows */
    cbor_put_text(&out, TEXT("millidegrees"));
    cbor_put_int(&out, measure(room));
    return capsule_ipc_publish(rooms[room].topic, rooms[room].len, buf, out.len);
}

CAPSULE_EXPORT("run")
void run(void) {
    /* A capsule that only publishes still needs something to wait on. Nobody is granted to publish this
     * topic, so that it stays silent. */
    uint32_t silence = subscribe(TEXT("sensor-clock.silence"));
    uint32_t refused = 0;
    int64_t now, due = capsule_monotonic_ns();
    capsule_ready();
    for (uint32_t reading = 0;; reading++) {
        if (publish(reading % ROOMS, reading / ROOMS) < 0 && refused++ == 0)
            say_refusal(CAPSULE_LOG_WARN, "cannot publish (said once)");
        if (reading % LOG_EVERY == LOG_EVERY - 1)
            say(CAPSULE_LOG_INFO, "%u readings, %u refused", reading + 1, refused);
        due += INTERVAL_MS * NS_PER_MS;
        if (due < (now = capsule_monotonic_ns())) due = now; /* stood still for a while: no burst to catch up */
        if (wait_until(silence, due) == -CAPSULE_ECANCELED) return;
    }
}
