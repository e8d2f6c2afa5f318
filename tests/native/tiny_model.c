#define _GNU_SOURCE
#include "tiny_model.h"

#include "file/tensor_types.h"
#include "gguf_builder.h"
#include "random.h"
#include "types/float16.h"

enum { HEAD_SIZE = 16, N_HEAD = 4, N_HEAD_KV = 2, N_FF = 96, N_TAPS = 3 };

/* Collects the header's tensor entries and the data side by side. */
typedef struct Writer {
    Bytes entries, data;
    uint64_t n_tensors;
    Random random;
} Writer;

/* ---- tensors ---------------------------------------------------------------------------------------- */

static uint8_t *extend(Bytes *bytes, size_t size) {
    put_zeros(bytes, size);
    return bytes->data + bytes->size - size;
}

static void put_half(uint8_t *at, float value) {
    const uint16_t half = f16_from_float(value);
    memcpy(at, &half, 2);
}

/* Random values of the given spread in the given type; `type` is F32, F16, Q8_0 or Q4_0. */
static void put_random(Writer *w, TensorType type, uint64_t count, double mean, double spread) {
    for (uint64_t i = 0; i < count; i++) {
        const double value = mean + spread * random_normal(&w->random);
        if (type == TYPE_F32) put(&w->data, &(float){(float)value}, 4);
        if (type == TYPE_F16) put_half(extend(&w->data, 2), (float)value);
        if (type == TYPE_Q8_0 || type == TYPE_Q4_0) {
            const size_t codes = type == TYPE_Q8_0 ? 32 : 16;
            if (i % 32 == 0) put_half(extend(&w->data, 2 + codes), (float)(spread / (type == TYPE_Q8_0 ? 64 : 4)));
            if (i % 32 < codes) w->data.data[w->data.size - codes + i % 32] = (uint8_t)random_bits(&w->random);
        }
    }
}

static void add_tensor(Writer *w, const char *name, TensorType type, uint64_t columns, uint64_t rows, double mean,
                       double spread) {
    put_padding(&w->data, 32);
    put_tensor(&w->entries, name, rows ? 2 : 1, (uint64_t[]){columns, rows}, type, w->data.size);
    put_random(w, type, columns * (rows ? rows : 1), mean, spread);
    w->n_tensors++;
}

static void add_gain(Writer *w, const char *name, int columns) {
    add_tensor(w, name, TYPE_F32, (uint64_t)columns, 0, 1, 0.1);
}

/* Outputs keep about the size of normalised inputs. */
static void add_matrix(Writer *w, const char *name, TensorType type, int rows, int columns, double factor) {
    add_tensor(w, name, type, (uint64_t)columns, (uint64_t)rows, 0, factor / sqrt(columns));
}

/* Matrices of a layer mix the types, so that a pass uses integer and float kernels. */
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%d." suffix ".weight", index), name)

static void add_feed_forward(Writer *w, int index, int n_embd) {
    char name[64];
    add_gain(w, NAME("ffn_norm"), n_embd);
    add_matrix(w, NAME("ffn_gate"), TYPE_Q4_0, N_FF, n_embd, 1);
    add_matrix(w, NAME("ffn_up"), TYPE_Q8_0, N_FF, n_embd, 1);
    add_matrix(w, NAME("ffn_down"), TYPE_Q8_0, n_embd, N_FF, 1);
}

static void add_layer(Writer *w, int index, int n_embd, bool head_norms) {
    char name[64];
    add_gain(w, NAME("attn_norm"), n_embd);
    add_matrix(w, NAME("attn_q"), TYPE_Q8_0, N_HEAD * HEAD_SIZE, n_embd, 2);
    add_matrix(w, NAME("attn_k"), TYPE_F16, N_HEAD_KV * HEAD_SIZE, n_embd, 2);
    add_matrix(w, NAME("attn_v"), TYPE_Q4_0, N_HEAD_KV * HEAD_SIZE, n_embd, 1);
    if (head_norms) {
        add_gain(w, NAME("attn_q_norm"), HEAD_SIZE);
        add_gain(w, NAME("attn_k_norm"), HEAD_SIZE);
    }
    add_matrix(w, NAME("attn_output"), TYPE_Q4_0, n_embd, N_HEAD * HEAD_SIZE, 1);
    add_feed_forward(w, index, n_embd);
}

static void add_convolution(Writer *w, int index, int n_embd) {
    char name[64];
    add_gain(w, NAME("attn_norm"), n_embd);
    add_matrix(w, NAME("shortconv.in_proj"), TYPE_Q8_0, 3 * n_embd, n_embd, 2);
    add_matrix(w, NAME("shortconv.conv"), TYPE_F32, n_embd, N_TAPS, 2);
    add_matrix(w, NAME("shortconv.out_proj"), TYPE_Q8_0, n_embd, n_embd, 2);
    add_feed_forward(w, index, n_embd);
}
#undef NAME

/* ---- metadata --------------------------------------------------------------------------------------- */

static void put_number(Bytes *bytes, const char *prefix, const char *suffix, uint32_t value) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", prefix, suffix);
    PUT_VALUE(bytes, key, BEE_VALUE_UINT32, uint32_t, value);
}

enum { N_SHAPE_KEYS = 8 };

static void put_shape(Bytes *bytes, const char *prefix, int n_layer, const TinyTarget *target) {
    char key[128];
    put_number(bytes, prefix, "block_count", (uint32_t)n_layer);
    put_number(bytes, prefix, "context_length", (uint32_t)target->n_ctx);
    put_number(bytes, prefix, "embedding_length", (uint32_t)target->n_embd);
    put_number(bytes, prefix, "feed_forward_length", N_FF);
    put_number(bytes, prefix, "attention.head_count", N_HEAD);
    put_number(bytes, prefix, "attention.key_length", HEAD_SIZE);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", prefix);
    PUT_VALUE(bytes, key, BEE_VALUE_FLOAT32, float, 1e-5f);
    snprintf(key, sizeof key, "%s.rope.freq_base", prefix);
    PUT_VALUE(bytes, key, BEE_VALUE_FLOAT32, float, 10000);
}

static void put_vocabulary(Bytes *bytes, const TinyTarget *target) {
    put_array_head(bytes, "tokenizer.ggml.tokens", BEE_VALUE_STRING, (uint64_t)target->n_vocab);
    for (int i = 0; i < target->n_vocab; i++) {
        char text[16];
        snprintf(text, sizeof text, target->other_words ? "w%d" : "t%d", i);
        put_string(bytes, text);
    }
}

/* Header, entries, padding, data; frees the writer. */
static TinyFile finish(Writer *w, Bytes metadata, uint64_t n_keys) {
    Bytes file = begin(w->n_tensors, n_keys);
    put(&file, metadata.data, metadata.size);
    put(&file, w->entries.data, w->entries.size);
    put_padding(&file, 32);
    put(&file, w->data.data, w->data.size);
    TinyFile out = {.descriptor = memfd_create("gguf", MFD_CLOEXEC)};
    REQUIRE(out.descriptor >= 0);
    REQUIRE(write(out.descriptor, file.data, file.size) == (ssize_t)file.size);
    snprintf(out.path, sizeof out.path, "/proc/self/fd/%d", out.descriptor);
    free(file.data);
    free(metadata.data);
    free(w->entries.data);
    free(w->data.data);
    return out;
}

/* ---- files ------------------------------------------------------------------------------------------ */

/* Layers without heads of keys are convolutions. */
static void put_memory(Bytes *bytes, const TinyTarget *t) {
    put_number(bytes, "lfm2", "shortconv.l_cache", N_TAPS);
    put_array_head(bytes, "lfm2.attention.head_count_kv", BEE_VALUE_INT32, (uint64_t)t->n_layer);
    for (int i = 0; i < t->n_layer; i++) put(bytes, &(int32_t){i ? N_HEAD_KV : 0}, 4);
}

TinyFile tiny_target(const TinyTarget *t) {
    const char *const architecture = t->remembers ? "lfm2" : "llama";
    Bytes metadata = {0};
    put_text_value(&metadata, "general.architecture", architecture);
    put_shape(&metadata, architecture, t->n_layer, t);
    if (t->remembers)
        put_memory(&metadata, t);
    else
        put_number(&metadata, architecture, "attention.head_count_kv", N_HEAD_KV);
    put_vocabulary(&metadata, t);
    Writer w = {.random = {t->seed}};
    add_tensor(&w, "token_embd.weight", TYPE_F32, (uint64_t)t->n_embd, (uint64_t)t->n_vocab, 0, 1);
    if (t->broken_token) {
        const size_t after = (size_t)(t->n_vocab - t->broken_token) * (size_t)t->n_embd * 4;
        memcpy(w.data.data + w.data.size - after, &(float){NAN}, 4);
    }
    if (t->remembers) add_convolution(&w, 0, t->n_embd);
    for (int i = t->remembers; i < t->n_layer; i++) add_layer(&w, i, t->n_embd, t->remembers);
    add_gain(&w, t->remembers ? "token_embd_norm.weight" : "output_norm.weight", t->n_embd);
    if (t->not_finite) memcpy(w.data.data + w.data.size - 4, &(float){NAN}, 4);
    add_matrix(&w, "output.weight", TYPE_Q8_0, t->n_vocab, t->n_embd, t->sharpness);
    return finish(&w, metadata, 2 + N_SHAPE_KEYS + 1 + t->remembers);
}

TinyFile tiny_drafter(const TinyTarget *t, const TinyDrafter *d) {
    enum { N_LAYER = 1 };
    Bytes metadata = {0};
    put_text_value(&metadata, "general.architecture", "dflash");
    put_shape(&metadata, "dflash", N_LAYER, t);
    put_number(&metadata, "dflash", "attention.head_count_kv", N_HEAD_KV);
    put_vocabulary(&metadata, t);
    put_number(&metadata, "dflash", "block_size", (uint32_t)d->block_size);
    PUT_VALUE(&metadata, "dflash.attention.causal", BEE_VALUE_BOOL, uint8_t, d->causal);
    PUT_VALUE(&metadata, "tokenizer.ggml.mask_token_id", BEE_VALUE_UINT32, uint32_t, 2);
    const int32_t taps[] = {0, t->n_layer}; /* the embedding, and the last layer's output */
    put_array_head(&metadata, "dflash.target_layers", BEE_VALUE_INT32, 2);
    put(&metadata, taps, sizeof taps);
    Writer w = {.random = {d->seed}};
    add_matrix(&w, "fc.weight", TYPE_Q8_0, t->n_embd, 2 * t->n_embd, 1);
    add_gain(&w, "enc.output_norm.weight", t->n_embd);
    add_layer(&w, 0, t->n_embd, true);
    add_gain(&w, "output_norm.weight", t->n_embd);
    if (d->n_draft_vocab) {
        put_padding(&w.data, 32);
        put_tensor(&w.entries, "d2t", 1, (uint64_t[]){(uint64_t)d->n_draft_vocab}, TYPE_I64, w.data.size);
        for (int i = 0; i < d->n_draft_vocab; i++) /* from the highest id down */
            put_u64(&w.data, (uint64_t)(t->n_vocab - 1 - i));
        w.n_tensors++;
    }
    return finish(&w, metadata, 2 + N_SHAPE_KEYS + 5);
}

void tiny_file_close(TinyFile *file) {
    close(file->descriptor);
    file->descriptor = -1;
}
