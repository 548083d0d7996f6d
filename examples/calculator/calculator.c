/* calculator: a server. `calc.request.<op>` with {id, a, b, reply} is answered with {id, result} or
 * {id, error}, on the topic that the customer named. */
#include "cbor.h"
#include "guest.h"

#define PATIENCE_MS 60000
#define LOG_EVERY 100 /* requests */

static uint8_t inbox[64 * 1024];

/* Keeps products inside 64 bits, so that there is no overflow to define. */
#define OPERAND_MAX 1000000000

/* The last segment of the topic says what to do. Answers why not, or nothing. */
static const char *calculate(struct cbor_text op, int64_t a, int64_t b, int64_t *result) {
    if (a > OPERAND_MAX || a < -OPERAND_MAX || b > OPERAND_MAX || b < -OPERAND_MAX) return "operand too large";
    if (cbor_is(op, TEXT("calc.request.add"))) *result = a + b;
    else if (cbor_is(op, TEXT("calc.request.subtract"))) *result = a - b;
    else if (cbor_is(op, TEXT("calc.request.multiply"))) *result = a * b;
    else if (!cbor_is(op, TEXT("calc.request.divide"))) return "unknown operation";
    else if (b == 0) return "division by zero"; /* an answer: the division itself would trap */
    else *result = a / b;
    return 0;
}

static void serve(const struct message *request) {
    uint8_t buf[64];
    struct cbor_out out = cbor_out(buf, sizeof buf);
    struct cbor_text reply;
    uint64_t id;
    int64_t a, b, result;
    if (!cbor_find_uint(request->payload, TEXT("id"), &id) || !cbor_find_int(request->payload, TEXT("a"), &a) ||
        !cbor_find_int(request->payload, TEXT("b"), &b) || !cbor_find_text(request->payload, TEXT("reply"), &reply)) {
        say(CAPSULE_LOG_WARN, "%.*s sent a request without id, a, b and reply", (int)request->source.len,
            request->source.at);
        return;
    }
    const char *error = calculate(request->topic, a, b, &result);
    cbor_put_map(&out, 2);
    cbor_put_text(&out, TEXT("id"));
    cbor_put_uint(&out, id);
    if (error) {
        cbor_put_text(&out, TEXT("error"));
        uint32_t len = 0;
        while (error[len]) len++;
        cbor_put_text(&out, error, len);
    } else {
        cbor_put_text(&out, TEXT("result"));
        cbor_put_int(&out, result);
    }
    /* The customer chooses the topic, but the grant is ours: `calc.reply.*` and nothing else can be reached
     * through us. Caused by the request: the customer's principal travels on with the answer. */
    if (capsule_ipc_publish_caused(reply.at, reply.len, buf, out.len, request->seq) < 0)
        say_refusal(CAPSULE_LOG_WARN, "cannot answer");
}

CAPSULE_EXPORT("run")
void run(void) {
    uint32_t served = 0;
    uint32_t requests = subscribe(TEXT("calc.request.*"));
    capsule_ready();
    for (;;) {
        struct envelope envelope;
        struct message message;
        int32_t received = receive(requests, PATIENCE_MS, inbox, sizeof inbox);
        if (received == -CAPSULE_ECANCELED) return;
        if (!envelope_open(&envelope, inbox, (uint32_t)received)) continue;
        while (envelope_next(&envelope, &message)) {
            serve(&message);
            if (++served % LOG_EVERY == 0) say(CAPSULE_LOG_INFO, "%u requests served", served);
        }
    }
}
