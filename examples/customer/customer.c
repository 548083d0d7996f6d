/* customer: a client. Asks the calculator ten times a second, one question at a time, and checks each answer. */
#include "cbor.h"
#include "guest.h"

#define INTERVAL_MS 100
#define LOG_EVERY 50 /* questions: five seconds */
#define REPLY TEXT("calc.reply.customer")

static uint8_t inbox[16 * 1024];

static const struct operation {
    const char *topic;
    uint32_t len;
} operations[] = {
    {TEXT("calc.request.add")},
    {TEXT("calc.request.subtract")},
    {TEXT("calc.request.multiply")},
    {TEXT("calc.request.divide")},
};

static struct question {
    uint32_t id, operation;
    int32_t a, b;
    int answered;
} question;

static uint32_t right, wrong, unanswered;

static void ask(void) {
    uint8_t random[5], buf[64];
    struct cbor_out out = cbor_out(buf, sizeof buf);
    capsule_random(random, sizeof random);
    question.id++;
    question.operation = random[4] % 4;
    question.a = random[0] << 8 | random[1];
    question.b = (random[2] << 8 | random[3]) - 32768; /* zero now and then: dividing by it is an answer too */
    question.answered = 0;
    cbor_put_map(&out, 4);
    cbor_put_text(&out, TEXT("id"));
    cbor_put_uint(&out, question.id);
    cbor_put_text(&out, TEXT("a"));
    cbor_put_int(&out, question.a);
    cbor_put_text(&out, TEXT("b"));
    cbor_put_int(&out, question.b);
    cbor_put_text(&out, TEXT("reply"));
    cbor_put_text(&out, REPLY);
    if (capsule_ipc_publish(operations[question.operation].topic, operations[question.operation].len, buf, out.len) < 0)
        say_refusal(CAPSULE_LOG_WARN, "cannot ask");
}

static int is_right(struct cbor answer) {
    struct cbor_text error;
    int64_t result, a = question.a, b = question.b;
    if (cbor_find_text(answer, TEXT("error"), &error)) return question.operation == 3 && b == 0;
    if (!cbor_find_int(answer, TEXT("result"), &result)) return 0;
    switch (question.operation) {
        case 0: return result == a + b;
        case 1: return result == a - b;
        case 2: return result == a * b;
        default: return b != 0 && result == a / b;
    }
}

static void hear(uint32_t received) {
    struct envelope envelope;
    struct message message;
    uint64_t id;
    if (!envelope_open(&envelope, inbox, received)) return;
    while (envelope_next(&envelope, &message)) {
        if (!cbor_find_uint(message.payload, TEXT("id"), &id) || id != question.id) continue; /* too late */
        question.answered = 1;
        if (is_right(message.payload)) {
            right++;
        } else {
            wrong++;
            say(CAPSULE_LOG_ERROR, "wrong answer to question %u", question.id);
        }
    }
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t replies = subscribe(REPLY);
    capsule_ready();
    for (;;) {
        int64_t due = capsule_monotonic_ns() + INTERVAL_MS * NS_PER_MS;
        ask();
        for (int64_t left; (left = due - capsule_monotonic_ns()) > 0;) {
            int32_t received = receive(replies, (uint32_t)(left / NS_PER_MS) + 1, inbox, sizeof inbox);
            if (received == -CAPSULE_ECANCELED) return;
            hear((uint32_t)received);
        }
        if (!question.answered) unanswered++;
        if (question.id % LOG_EVERY == 0)
            say(CAPSULE_LOG_INFO, "%u questions: %u answers right, %u wrong, %u unanswered in time", question.id, right,
                wrong, unanswered);
    }
}
