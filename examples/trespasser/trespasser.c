/* trespasser (misbehaves): tries what its manifest does not grant, one thing a second, for ever. It logs each
 * refusal's sentence once, and an error whenever something is not refused as it should be. */
#include "cbor.h"
#include "guest.h"

#define PAUSE_MS 1000
#define NO_HANDLE 123456789 /* nobody gave us these two */
#define NO_MESSAGE (UINT64_C(1) << 62)
#define BEYOND ((void *)0xfffffff0u)

static uint8_t inbox[16 * 1024];
static const uint8_t nothing[1] = {0xf6}; /* CBOR null */

enum deed { PUBLISH, PUBLISH_CAUSED, SUBSCRIBE, UNSUBSCRIBE, RANDOM_BEYOND };

static const struct attempt {
    const char *what;
    enum deed deed;
    const char *topic;
    uint32_t len;
    int32_t expected;
} attempts[] = {
    {"another's topic", PUBLISH, TEXT("calc.reply.customer"), -CAPSULE_ENOTCAPABLE},
    {"the supervisor's topics", PUBLISH, TEXT("kernel.capsule.stop"), -CAPSULE_ENOTCAPABLE},
    {"another's messages", SUBSCRIBE, TEXT("sensor.kitchen.temperature"), -CAPSULE_ENOTCAPABLE},
    {"everybody's messages", SUBSCRIBE, TEXT("*"), -CAPSULE_ENOTCAPABLE},
    {"the supervisor's events", SUBSCRIBE, TEXT("kernel.*"), -CAPSULE_ENOTCAPABLE},
    {"more than the grant", SUBSCRIBE, TEXT("trespasser.*"), -CAPSULE_ENOTCAPABLE},
    {"an invented cause", PUBLISH_CAUSED, TEXT("trespasser.diary"), -CAPSULE_EBADF},
    {"another's handle", UNSUBSCRIBE, TEXT(""), -CAPSULE_EBADF},
    {"memory that is not mine", RANDOM_BEYOND, TEXT(""), -CAPSULE_EFAULT},
};
#define ATTEMPTS (sizeof attempts / sizeof attempts[0])

static int32_t act(const struct attempt *attempt) {
    switch (attempt->deed) {
        case PUBLISH: return capsule_ipc_publish(attempt->topic, attempt->len, nothing, sizeof nothing);
        case PUBLISH_CAUSED:
            return capsule_ipc_publish_caused(attempt->topic, attempt->len, nothing, sizeof nothing, NO_MESSAGE);
        case SUBSCRIBE: return capsule_ipc_subscribe(attempt->topic, attempt->len);
        case UNSUBSCRIBE: return capsule_ipc_unsubscribe(NO_HANDLE);
        case RANDOM_BEYOND: return capsule_random(BEYOND, 4096);
    }
    return 0;
}

/* What does arrive here is ours: the diary may hold nothing on another's behalf. */
static void read_diary(uint32_t received) {
    struct envelope envelope;
    struct message message;
    if (!envelope_open(&envelope, inbox, received)) return;
    while (envelope_next(&envelope, &message))
        if (!cbor_is(message.source, TEXT("trespasser")) || !cbor_is(message.principal, TEXT("trespasser")))
            say(CAPSULE_LOG_ERROR, "a message from %.*s on behalf of %.*s", (int)message.source.len, message.source.at,
                (int)message.principal.len, message.principal.at);
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t diary = subscribe(TEXT("trespasser.diary"));
    capsule_ready();
    for (uint32_t n = 0;; n++) {
        const struct attempt *attempt = &attempts[n % ATTEMPTS];
        int32_t result = act(attempt);
        if (result != attempt->expected)
            say(CAPSULE_LOG_ERROR, "%s: expected %d, got %d", attempt->what, (int)attempt->expected, (int)result);
        else if (n < ATTEMPTS)
            say_refusal(CAPSULE_LOG_INFO, attempt->what);
        if (n % ATTEMPTS == ATTEMPTS - 1) say(CAPSULE_LOG_INFO, "%u attempts", n + 1);
        capsule_ipc_publish(TEXT("trespasser.diary"), nothing, sizeof nothing);
        int64_t due = capsule_monotonic_ns() + PAUSE_MS * NS_PER_MS;
        for (int64_t left; (left = due - capsule_monotonic_ns()) > 0;) {
            int32_t received = receive(diary, (uint32_t)(left / NS_PER_MS) + 1, inbox, sizeof inbox);
            if (received == -CAPSULE_ECANCELED) return;
            read_diary((uint32_t)received);
        }
    }
}
