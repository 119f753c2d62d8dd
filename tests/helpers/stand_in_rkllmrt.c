/* A stand-in for librkllmrt of one release: the documented C interface over a bigram table.
 *
 * It executes no RKLLM file and proves nothing about the vendor's library. It checks every field
 * that it is given against what the interface documents, and refuses what is wrong, by name.
 *
 * RELEASE: 110, 120, 121 or 130, the releases whose structures differ; NAME: what it calls itself.
 * A "model" is int32 {0x4b52, vocabulary, eos, microseconds a token}, then logits [last][next], float.
 * Microseconds below 0 are faults.
 */
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LAST_ALONE (-1) /* logits of the last token only */
#define SILENT (-2)     /* nothing is generated */
#define ILLEGAL (-3)    /* an instruction that the processor does not have */

typedef void *LLMHandle;
typedef int LLMCallState;

typedef struct {
    int32_t base_domain_id;
#if RELEASE == 110
    uint8_t reserved[112];
#else
    int8_t embed_flash;
    int8_t enabled_cpus_num;
    uint32_t enabled_cpus_mask;
#if RELEASE == 120
    uint8_t reserved[106];
#else
    uint8_t n_batch;
    int8_t use_cross_attn;
    uint8_t reserved[104];
#endif
#endif
} RKLLMExtendParam;

typedef struct {
    const char *model_path;
    int32_t max_context_len;
    int32_t max_new_tokens;
    int32_t top_k;
#if RELEASE >= 120
    int32_t n_keep;
#endif
    float top_p;
    float temperature;
    float repeat_penalty;
    float frequency_penalty;
    float presence_penalty;
    int32_t mirostat;
    float mirostat_tau;
    float mirostat_eta;
    bool skip_special_token;
#if RELEASE >= 130
    bool ignore_eos_token;
#endif
    bool is_async;
#if RELEASE < 130
    const char *img_start;
    const char *img_end;
    const char *img_content;
#endif
    RKLLMExtendParam extend_param;
} RKLLMParam;

typedef struct {
    int32_t *input_ids;
    size_t n_tokens;
} RKLLMTokenInput;

typedef struct {
    char *prompt;
#if RELEASE < 130
    float *image_embed;
    size_t n_image_tokens;
#if RELEASE >= 121
    size_t n_image;
    size_t image_width;
    size_t image_height;
#endif
#else
    struct {
        float *image_embed;
        size_t n_image_tokens, n_image;
        const char *image_start, *image_end, *image_content;
        size_t image_width, image_height;
    } image;
    struct {
        float *video_embed;
        size_t n_frame_tokens, n_frame_per_video, n_video;
        const char *video_start, *video_end, *video_content;
        size_t frame_width, frame_height;
    } video;
#endif
} RKLLMMultiModalInput;

typedef struct {
#if RELEASE >= 121
    const char *role;
    bool enable_thinking;
#endif
    int input_type;
    union {
        const char *prompt_input;
        RKLLMTokenInput token_input;
        RKLLMMultiModalInput multimodal_input;
    };
} RKLLMInput;

typedef struct {
    int mode;
    void *lora_params;
    void *prompt_cache_params;
#if RELEASE >= 130
    void *sampling_params;
#endif
#if RELEASE >= 120
    int keep_history;
#endif
#if RELEASE >= 130
    int32_t max_new_tokens;
#endif
} RKLLMInferParam;

typedef struct {
    const float *hidden_states;
    int embd_size;
    int num_tokens;
} RKLLMResultLastHiddenLayer;

typedef struct {
    const float *logits;
    int vocab_size;
    int num_tokens;
} RKLLMResultLogits;

typedef struct {
    float prefill_time_ms;
    int prefill_tokens;
    float generate_time_ms;
    int generate_tokens;
    float memory_usage_mb;
} RKLLMPerfStat;

typedef struct {
    const char *text;
    int32_t token_id;
    RKLLMResultLastHiddenLayer last_hidden_layer;
#if RELEASE >= 120
    RKLLMResultLogits logits;
#endif
#if RELEASE >= 121
    RKLLMPerfStat perf;
#endif
} RKLLMResult;

#if RELEASE >= 121
typedef int (*LLMResultCallback)(RKLLMResult *, void *, LLMCallState);
#else
typedef void (*LLMResultCallback)(RKLLMResult *, void *, LLMCallState);
#endif

#if RELEASE >= 130
typedef struct {
    LLMResultCallback result_callback;
    void *result_userdata;
    void *tokenizer_callback;
    void *tokenizer_userdata;
    void *embed_callback;
    void *embed_userdata;
} RKLLMCallback;
#endif

/* What a test compares with the Python side, so that neither is trusted alone. */
#define AT(type, field) {#type "." #field, offsetof(type, field)}
static const struct {
    const char *name;
    size_t offset;
} offsets[] = {
    AT(RKLLMParam, max_new_tokens),     AT(RKLLMParam, top_k),    AT(RKLLMParam, top_p),
    AT(RKLLMParam, skip_special_token), AT(RKLLMParam, is_async), AT(RKLLMParam, extend_param),
    AT(RKLLMInput, input_type),         AT(RKLLMInput, token_input),
    AT(RKLLMInferParam, mode),          AT(RKLLMResult, token_id),
#if RELEASE >= 120
    AT(RKLLMParam, n_keep),             AT(RKLLMInferParam, keep_history),
    AT(RKLLMResult, logits),
#endif
#if RELEASE >= 121
    AT(RKLLMInput, role),               AT(RKLLMResult, perf),
#endif
#if RELEASE >= 130
    AT(RKLLMParam, ignore_eos_token),   AT(RKLLMInferParam, max_new_tokens),
#endif
};

size_t stand_in_sizes[4] = {sizeof(RKLLMParam), sizeof(RKLLMInput), sizeof(RKLLMInferParam),
                            sizeof(RKLLMResult)};

const char *stand_in_offset(int index, size_t *offset) {
    if (index >= (int)(sizeof offsets / sizeof *offsets)) return NULL;
    *offset = offsets[index].offset;
    return offsets[index].name;
}

static struct {
    LLMResultCallback callback;
    RKLLMParam param;
    int32_t vocabulary, eos, microseconds;
    float *table;
    int cached; /* tokens that would be reused: the library keeps them until told otherwise */
} model;

#define REQUIRE(what)                                                 \
    do {                                                              \
        if (!(what)) {                                                \
            fprintf(stderr, "E stand-in: not so: %s\n", #what);       \
            return -1;                                                \
        }                                                             \
    } while (0)

RKLLMParam rkllm_createDefaultParam(void) {
    RKLLMParam param;
    memset(&param, 0, sizeof param);
    param.max_context_len = 512;
    param.max_new_tokens = -1;
    param.top_k = 40;
    param.top_p = 0.9f;
    param.temperature = 0.8f;
    param.repeat_penalty = 1.1f;
    param.mirostat_tau = 5.0f;
    param.mirostat_eta = 0.1f;
    param.skip_special_token = true;
    param.is_async = true;
#if RELEASE >= 120
    param.n_keep = -1;
    param.extend_param.enabled_cpus_num = 4;
    param.extend_param.enabled_cpus_mask = 0xf0;
#endif
#if RELEASE >= 121
    param.extend_param.n_batch = 1;
#endif
    return param;
}

static int load(RKLLMParam *param) {
    printf("I rkllm: rkllm-runtime version: " NAME ", rknpu driver version: 0.9.8, platform: RK3588\n");
    FILE *file = fopen(param->model_path, "rb");
    if (file == NULL) {
        printf("E rkllm: load model file error!\n");
        return -1;
    }
    int32_t head[4];
    REQUIRE(fread(head, sizeof head, 1, file) == 1 && head[0] == 0x4b52);
    model.vocabulary = head[1], model.eos = head[2], model.microseconds = head[3];
    size_t entries = (size_t)head[1] * head[1];
    model.table = malloc(entries * sizeof(float));
    REQUIRE(fread(model.table, sizeof(float), entries, file) == entries);
    fclose(file);
    REQUIRE(param->max_context_len >= 2 && param->max_context_len % 32 == 0);
    REQUIRE(param->max_new_tokens >= 1);
    REQUIRE(param->top_k == 1);
    REQUIRE(param->top_p == 1.0f && param->temperature == 1.0f && param->repeat_penalty == 1.0f);
    REQUIRE(param->frequency_penalty == 0.0f && param->presence_penalty == 0.0f);
    REQUIRE(param->mirostat == 0 && param->mirostat_tau == 5.0f && param->mirostat_eta == 0.1f);
    REQUIRE(!param->skip_special_token && !param->is_async);
    REQUIRE(param->extend_param.base_domain_id == 0);
#if RELEASE >= 120
    REQUIRE(param->n_keep == -1);
    REQUIRE(param->extend_param.embed_flash == 0 && param->extend_param.enabled_cpus_num == 4);
    REQUIRE(param->extend_param.enabled_cpus_mask == 0xf0);
#endif
#if RELEASE >= 121
    REQUIRE(param->extend_param.n_batch == 1 && param->extend_param.use_cross_attn == 0);
#endif
#if RELEASE >= 130
    REQUIRE(param->ignore_eos_token);
#else
    REQUIRE(param->img_start == NULL && param->img_end == NULL && param->img_content == NULL);
#endif
    for (size_t n = 0; n < sizeof param->extend_param.reserved; ++n)
        REQUIRE(param->extend_param.reserved[n] == 0);
    model.param = *param;
    return 0;
}

#if RELEASE >= 130
int rkllm_init(LLMHandle *handle, RKLLMParam *param, RKLLMCallback *callback) {
    int status = load(param);
    if (status != 0) return status;
    REQUIRE(callback->result_callback != NULL && callback->result_userdata == NULL);
    REQUIRE(callback->tokenizer_callback == NULL && callback->tokenizer_userdata == NULL);
    REQUIRE(callback->embed_callback == NULL && callback->embed_userdata == NULL);
    model.callback = callback->result_callback;
#else
int rkllm_init(LLMHandle *handle, RKLLMParam *param, LLMResultCallback callback) {
    int status = load(param);
    if (status != 0) return status;
    REQUIRE(callback != NULL);
    model.callback = callback;
#endif
    *handle = &model;
    return 0;
}

static int largest(const float *row) {
    int best = 0;
    for (int n = 1; n < model.vocabulary; ++n)
        if (row[n] > row[best]) best = n;
    return best;
}

int rkllm_run(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer, void *userdata) {
    REQUIRE(handle == &model && userdata == NULL);
    REQUIRE(input->input_type == 1);
#if RELEASE >= 121
    REQUIRE(strcmp(input->role, "user") == 0 && !input->enable_thinking);
#endif
    size_t tokens = input->token_input.n_tokens;
    const int32_t *ids = input->token_input.input_ids;
    REQUIRE(tokens >= 1 && tokens + 1 <= (size_t)model.param.max_context_len);
    for (size_t n = 0; n < tokens; ++n) REQUIRE(ids[n] >= 0 && ids[n] < model.vocabulary);
    REQUIRE(infer->lora_params == NULL && infer->prompt_cache_params == NULL);
    int wanted = model.param.max_new_tokens;
#if RELEASE >= 120
    REQUIRE(infer->keep_history == 0);
    REQUIRE(infer->mode == 0 || infer->mode == 2);
#else
    REQUIRE(infer->mode == 0);
#endif
#if RELEASE >= 130
    REQUIRE(infer->sampling_params == NULL && infer->max_new_tokens >= 1);
    wanted = infer->max_new_tokens;
#endif
    RKLLMResult result;
    memset(&result, 0, sizeof result);
#if RELEASE >= 120
    if (infer->mode == 2) {
        size_t row = (size_t)model.vocabulary;
        float *logits = malloc(tokens * row * sizeof(float));
        for (size_t n = 0; n < tokens; ++n)
            memcpy(logits + n * row, model.table + ids[n] * row, row * sizeof(float));
        result.logits.logits = logits;
        result.logits.vocab_size = model.vocabulary;
        result.logits.num_tokens = (int)tokens;
        if (model.microseconds == LAST_ALONE) {
            result.logits.logits = logits + (tokens - 1) * row;
            result.logits.num_tokens = 1;
        }
        model.callback(&result, userdata, 0);
        free(logits);
        memset(&result, 0, sizeof result);
        model.callback(&result, userdata, 2);
        return 0;
    }
#endif
    if (model.microseconds == ILLEGAL) raise(SIGILL);
    if (model.microseconds == SILENT) wanted = 0;
    int fresh = (int)tokens - model.cached, last = ids[tokens - 1], made = 0;
    for (; made < wanted; ++made) {
        if (model.microseconds > 0) usleep(model.microseconds);
        last = largest(model.table + (size_t)last * model.vocabulary);
#if RELEASE < 130
        if (last == model.eos) break; /* before 1.3.0 nothing keeps it from ending */
#endif
        result.text = "", result.token_id = last;
        model.callback(&result, userdata, made % 3 == 1 ? 1 : 0);
    }
#if RELEASE >= 120
    model.cached = (int)tokens - 1;
#endif
#if RELEASE >= 121
    result.perf.prefill_time_ms = 2.0f * fresh, result.perf.prefill_tokens = fresh;
    result.perf.generate_time_ms = 50.0f * made, result.perf.generate_tokens = made;
    result.perf.memory_usage_mb = 2779.0f;
#else
    (void)fresh;
#endif
    result.token_id = 0;
    model.callback(&result, userdata, 2);
    return 0;
}

int rkllm_destroy(LLMHandle handle) {
    REQUIRE(handle == &model);
    free(model.table);
    return 0;
}

int rkllm_load_lora(LLMHandle handle, void *adapter) {
    (void)handle, (void)adapter;
    return -1;
}

#if RELEASE == 120
int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt) {
    REQUIRE(handle == &model && keep_system_prompt == 0);
    model.cached = 0;
    return 0;
}
#elif RELEASE > 120
int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt, int *start, int *end) {
    REQUIRE(handle == &model && keep_system_prompt == 0 && start == NULL && end == NULL);
    model.cached = 0;
    return 0;
}

int rkllm_set_function_tools(LLMHandle handle, const char *prompt, const char *tools, const char *tag) {
    (void)handle, (void)prompt, (void)tools, (void)tag;
    return -1;
}
#endif
