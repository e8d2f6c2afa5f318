/* GGUF v3 reader: reads the file's beginning, checks every field once when it is opened, and then only hands out views
 * of it; tensors are read when they are wanted.
 *
 * Files come from strangers. Three habits keep the checks complete: every read goes through `take`, which compares
 * against what is left of the file; every product and sum of numbers from the file goes through the overflow-checking
 * builtins; and no number from the file sizes an allocation before it is bounded by the bytes that would have to back
 * it. */
#include "gguf.h"

#include "checksum.h"
#include "error.h"
#include "split.h"
#include "tensor_types.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(size_t) == 8, "sizes of models are sizes of memory: a 64-bit machine is needed");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are used where they lie in the file");

enum {
    LABEL_CAPACITY = 320,   /* of the file's path in messages */
    QUOTED_LENGTH = 200,    /* of a key or name in messages */
    MAX_KEY_LENGTH = 65535, /* the specification's limit */
    MAX_NAME_LENGTH = 255,  /* of a tensor; the specification says 64, some converters write more */
    MAX_ENTRIES = 1 << 20,  /* of metadata, and of tensors: far beyond any model */
    MAX_DIMENSIONS = 4,
    MAX_PARTS = 99999, /* what fits their names */
    DEFAULT_ALIGNMENT = 32,
    FIRST_READ = 1 << 20,                   /* of a file, to begin with */
    MOST_READ = 1 << 30,                    /* at once */
    MIN_ALIGNMENT = 8,                      /* the specification wants a multiple of 8 */
    MAX_TENSOR_TYPE = 255,                  /* leaves room for types that ggml will add; a larger number is damage */
    SMALLEST_METADATA = 8 + 1 + 4 + 1,      /* bytes: key length, key, type, value */
    SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8 /* bytes: name length, name, dimensions, shape, type, offset */
};

typedef struct IndexEntry {
    const char *name;
    uint64_t length;
    uint64_t position; /* in the file's order */
} IndexEntry;

/* Names in sorted order. A hash table would be quicker, but its worst case is the file's author's to choose. */
typedef struct NameIndex {
    IndexEntry *entries;
    uint64_t count;
} NameIndex;

struct bee_file {
    char label[LABEL_CAPACITY]; /* the path, fit for a message */
    int descriptor;             /* open until the file is closed: tensors are read from it when they are wanted */
    uint8_t *data; /* the file's beginning, as far as it was read: header, metadata and the list of tensors */
    uint64_t n_read, size;
    bool wants_more; /* parsing needs more of the file than was read */
    bee_metadata *metadata;
    uint64_t metadata_count;
    NameIndex metadata_index;
    bee_tensor_info *tensors;
    const bee_file **holders; /* whose data each tensor is: this file's, or a part's */
    uint64_t tensor_count;
    NameIndex tensor_index;
    bee_file **parts; /* of a split model, those after this first one, whose tensors are this file's, too */
    int part_count;
};

/* ---- text in messages ----------------------------------------------------------------------------- */

/* Bytes of the UTF-8 sequence at `text`, or 0 where it is not valid or is a control character. */
static int printable_length(const uint8_t *text, uint64_t left) {
    uint8_t first = text[0];
    if (first < 0x80) return first >= 0x20 && first != 0x7F ? 1 : 0;
    int length = first >= 0xC2 && first <= 0xDF   ? 2
                 : (first & 0xF0) == 0xE0         ? 3
                 : first >= 0xF0 && first <= 0xF4 ? 4
                                                  : 0;
    if (length == 0 || (uint64_t)length > left) return 0;
    for (int i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) return 0;
    }
    uint8_t second = text[1];
    bool control = first == 0xC2 && second < 0xA0;
    bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    bool surrogate = first == 0xED && second >= 0xA0;
    bool too_large = first == 0xF4 && second >= 0x90;
    return control || overlong || surrogate || too_large ? 0 : length;
}

static bool is_printable(const char *text, uint64_t length) {
    for (uint64_t i = 0; i < length;) {
        int step = printable_length((const uint8_t *)text + i, length - i);
        if (step == 0) return false;
        i += (uint64_t)step;
    }
    return true;
}

/* What of a printable text to show in a message: all of it, or as many whole characters as fit. */
static int shown_length(const char *text, uint64_t length) {
    if (length <= QUOTED_LENGTH) return (int)length;
    int end = QUOTED_LENGTH;
    while (((uint8_t)text[end] & 0xC0) == 0x80) end--;
    return end;
}

/* The path as it can stand in a message: bytes that are not printable become '?', and of a long path the end stays. */
static void set_label(char label[LABEL_CAPACITY], const char *path) {
    size_t length = strlen(path), capacity = LABEL_CAPACITY - 1, used = 0, from = 0;
    if (length > capacity) {
        memcpy(label, "...", used = 3);
        from = length - (capacity - used);
    }
    while (from < length) {
        int step = printable_length((const uint8_t *)path + from, length - from);
        if (step == 0) {
            label[used++] = '?';
            from++;
        } else {
            memcpy(label + used, path + from, (size_t)step);
            used += (size_t)step;
            from += (size_t)step;
        }
    }
    label[used] = '\0';
}

/* ---- reading the header ----------------------------------------------------------------------------- */

/* The place in the header that is being read, and what to call it when something is wrong with it. */
typedef struct Reader {
    bee_file *file;
    uint64_t position;
    const char *section; /* "header", "metadata", "tensor" */
    uint64_t entry, entries;
    const char *name; /* of the entry; NULL until it is known to be printable */
    uint64_t name_length;
    bee_error *error;
} Reader;

/* `format` continues "FILE: tensor 'NAME': " or "FILE: tensor 3 of 40: ". */
__attribute__((format(printf, 3, 4))) static bee_status fail(const Reader *reader, bee_status status,
                                                             const char *format, ...) {
    if (!reader->error) return status;
    char reason[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    const char *label = reader->file->label;
    if (reader->name) {
        int shown = shown_length(reader->name, reader->name_length);
        const char *more = (uint64_t)shown < reader->name_length ? "..." : "";
        return bee_fail(reader->error, status, "%s: %s '%.*s%s': %s", label, reader->section, shown, reader->name, more,
                        reason);
    }
    if (reader->entries > 0) {
        return bee_fail(reader->error, status, "%s: %s entry %llu of %llu: %s", label, reader->section,
                        (unsigned long long)reader->entry + 1, (unsigned long long)reader->entries, reason);
    }
    return bee_fail(reader->error, status, "%s: %s: %s", label, reader->section, reason);
}

static uint64_t bytes_left(const Reader *reader) { return reader->file->size - reader->position; }

/* False, and the file is to be parsed again with more of it at hand, where the next `size` bytes were not read. */
static bool is_read(const Reader *reader, uint64_t size) {
    if (size <= reader->file->n_read - reader->position) return true;
    reader->file->wants_more = true;
    return false;
}

/* The next `size` bytes; `field` names them should the file end before. */
static bee_status take(Reader *reader, uint64_t size, const char *field, const uint8_t **out) {
    if (size > bytes_left(reader)) {
        return fail(reader, BEE_ERROR_FORMAT,
                    "%s needs %llu bytes at byte %llu but the file has %llu bytes; the download may be incomplete",
                    field, (unsigned long long)size, (unsigned long long)reader->position,
                    (unsigned long long)reader->file->size);
    }
    if (!is_read(reader, size)) return fail(reader, BEE_ERROR_FILE, "%s was not read yet", field);
    *out = reader->file->data + reader->position;
    reader->position += size;
    return BEE_OK;
}

static bee_status take_u32(Reader *reader, const char *field, uint32_t *out) {
    const uint8_t *bytes = NULL;
    bee_status status = take(reader, sizeof *out, field, &bytes);
    if (status == BEE_OK) memcpy(out, bytes, sizeof *out);
    return status;
}

static bee_status take_u64(Reader *reader, const char *field, uint64_t *out) {
    const uint8_t *bytes = NULL;
    bee_status status = take(reader, sizeof *out, field, &bytes);
    if (status == BEE_OK) memcpy(out, bytes, sizeof *out);
    return status;
}

/* The key or name that begins an entry. It becomes the reader's name, and what is printed of it is safe to print. */
static bee_status take_name(Reader *reader, const char *field, uint64_t limit) {
    uint64_t length;
    const uint8_t *bytes = NULL;
    bee_status status = take_u64(reader, field, &length);
    if (status != BEE_OK) return status;
    if (length == 0 || length > limit) {
        return fail(reader, BEE_ERROR_FORMAT, "%s has a length of %llu bytes; it must be 1 to %llu", field,
                    (unsigned long long)length, (unsigned long long)limit);
    }
    if ((status = take(reader, length, field, &bytes)) != BEE_OK) return status;
    if (!is_printable((const char *)bytes, length)) {
        return fail(reader, BEE_ERROR_FORMAT, "%s is not printable UTF-8 text", field);
    }
    reader->name = (const char *)bytes;
    reader->name_length = length;
    return BEE_OK;
}

/* ---- names ------------------------------------------------------------------------------------------ */

static int compare_names(const char *a, uint64_t a_length, const char *b, uint64_t b_length) {
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_entries(const void *a, const void *b) {
    const IndexEntry *left = a, *right = b;
    return compare_names(left->name, left->length, right->name, right->length);
}

/* Sorts the index; false, with a reader that points at the name, where one occurs twice. */
static bool sort_index(NameIndex *index, Reader *reader) {
    if (index->count < 2) return true;
    qsort(index->entries, index->count, sizeof *index->entries, compare_entries);
    for (uint64_t i = 1; i < index->count; i++) {
        if (compare_entries(&index->entries[i - 1], &index->entries[i]) == 0) {
            reader->name = index->entries[i].name;
            reader->name_length = index->entries[i].length;
            return false;
        }
    }
    return true;
}

static bool look_up(const NameIndex *index, const char *name, uint64_t *position) {
    uint64_t length = strlen(name), low = 0, high = index->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const IndexEntry *entry = &index->entries[middle];
        int order = compare_names(name, length, entry->name, entry->length);
        if (order == 0) {
            *position = entry->position;
            return true;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return false;
}

/* ---- metadata --------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    uint8_t size; /* bytes; 0 where it varies */
} value_types[] = {
    [BEE_VALUE_UINT8] = {"uint8", 1},     [BEE_VALUE_INT8] = {"int8", 1},     [BEE_VALUE_UINT16] = {"uint16", 2},
    [BEE_VALUE_INT16] = {"int16", 2},     [BEE_VALUE_UINT32] = {"uint32", 4}, [BEE_VALUE_INT32] = {"int32", 4},
    [BEE_VALUE_FLOAT32] = {"float32", 4}, [BEE_VALUE_BOOL] = {"bool", 1},     [BEE_VALUE_STRING] = {"string", 0},
    [BEE_VALUE_ARRAY] = {"array", 0},     [BEE_VALUE_UINT64] = {"uint64", 8}, [BEE_VALUE_INT64] = {"int64", 8},
    [BEE_VALUE_FLOAT64] = {"float64", 8},
};

enum { VALUE_TYPE_COUNT = sizeof value_types / sizeof value_types[0] };

static bee_status take_value_type(Reader *reader, const char *field, bee_value_type *out) {
    uint32_t number;
    bee_status status = take_u32(reader, field, &number);
    if (status != BEE_OK) return status;
    if (number >= VALUE_TYPE_COUNT) {
        return fail(reader, BEE_ERROR_FORMAT, "%s is %u; GGUF's types are 0 to %d", field, number,
                    VALUE_TYPE_COUNT - 1);
    }
    *out = (bee_value_type)number;
    return BEE_OK;
}

/* Steps over `count` strings in one sweep. */
static bee_status take_strings(Reader *reader, uint64_t count) {
    const uint8_t *data = reader->file->data;
    const uint64_t size = reader->file->size, n_read = reader->file->n_read;
    uint64_t position = reader->position;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t length = 0;
        bool whole = size - position >= sizeof length;
        if (whole && n_read - position >= sizeof length) {
            memcpy(&length, data + position, sizeof length);
            position += sizeof length;
            whole = length <= size - position;
        } else if (whole) {
            length = size; /* more than was read */
        }
        if (whole && length > n_read - position) {
            reader->file->wants_more = true;
            return fail(reader, BEE_ERROR_FILE, "a string was not read yet");
        }
        if (!whole) {
            return fail(reader, BEE_ERROR_FORMAT,
                        "string %llu of %llu runs past the file's %llu bytes; the download may be incomplete",
                        (unsigned long long)i + 1, (unsigned long long)count, (unsigned long long)size);
        }
        position += length;
    }
    reader->position = position;
    return BEE_OK;
}

static bee_status take_scalars(Reader *reader, bee_value_type type, uint64_t count) {
    uint64_t size;
    if (__builtin_mul_overflow(count, (uint64_t)value_types[type].size, &size)) {
        return fail(reader, BEE_ERROR_FORMAT, "an array of %llu elements of type %s is larger than any file",
                    (unsigned long long)count, value_types[type].name);
    }
    const uint8_t *bytes = NULL;
    bee_status status = take(reader, size, "the value", &bytes);
    if (status != BEE_OK || type != BEE_VALUE_BOOL) return status;
    uint8_t any = 0;
    for (uint64_t i = 0; i < count; i++) any |= bytes[i];
    return any <= 1 ? BEE_OK : fail(reader, BEE_ERROR_FORMAT, "a bool is %u; it must be 0 or 1", any);
}

static bee_status take_array_head(Reader *reader, bee_metadata *out) {
    bee_status status = take_value_type(reader, "the type of the array's elements", &out->element_type);
    if (status != BEE_OK) return status;
    if (out->element_type == BEE_VALUE_ARRAY) {
        return fail(reader, BEE_ERROR_FORMAT, "an array of arrays; the elements must be numbers, bools or strings");
    }
    return take_u64(reader, "the array's length", &out->count);
}

static bee_status take_metadata(Reader *reader, bee_metadata *out) {
    bee_status status = take_name(reader, "the key", MAX_KEY_LENGTH);
    if (status != BEE_OK) return status;
    out->key = reader->name;
    out->key_length = reader->name_length;
    if ((status = take_value_type(reader, "the value's type", &out->type)) != BEE_OK) return status;
    out->element_type = out->type;
    out->count = 1;
    if (out->type == BEE_VALUE_ARRAY && (status = take_array_head(reader, out)) != BEE_OK) return status;
    uint64_t begin = reader->position;
    if (out->element_type == BEE_VALUE_STRING) {
        status = take_strings(reader, out->count);
    } else {
        status = take_scalars(reader, out->element_type, out->count);
    }
    out->data = reader->file->data + begin;
    out->size = reader->position - begin;
    return status;
}

static bee_status read_metadata(bee_file *file, Reader *reader) {
    reader->section = "metadata";
    reader->entries = file->metadata_count;
    for (uint64_t i = 0; i < file->metadata_count; i++) {
        reader->entry = i;
        reader->name = NULL;
        bee_metadata *entry = &file->metadata[i];
        bee_status status = take_metadata(reader, entry);
        if (status != BEE_OK) return status;
        file->metadata_index.entries[i] = (IndexEntry){entry->key, entry->key_length, i};
    }
    file->metadata_index.count = file->metadata_count;
    if (!sort_index(&file->metadata_index, reader)) return fail(reader, BEE_ERROR_FORMAT, "the key occurs twice");
    return BEE_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------- */

static bee_status take_shape(Reader *reader, bee_tensor_info *out) {
    uint32_t dimensions;
    bee_status status = take_u32(reader, "the number of dimensions", &dimensions);
    if (status != BEE_OK) return status;
    if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
        return fail(reader, BEE_ERROR_FORMAT, "%u dimensions; there must be 1 to %d", dimensions, MAX_DIMENSIONS);
    }
    out->n_dimensions = (int32_t)dimensions;
    int64_t elements = 1;
    for (uint32_t i = 0; i < MAX_DIMENSIONS; i++) {
        out->shape[i] = 1;
        if (i >= dimensions) continue;
        if ((status = take_u64(reader, "the shape", &out->shape[i])) != BEE_OK) return status;
        if (out->shape[i] == 0) return fail(reader, BEE_ERROR_FORMAT, "dimension %u of the shape is 0", i);
        if (__builtin_mul_overflow(elements, out->shape[i], &elements)) {
            return fail(reader, BEE_ERROR_FORMAT, "the shape's dimensions 0 to %u multiply to more than 2^63 - 1", i);
        }
    }
    return BEE_OK;
}

/* Fills in what follows from the type: its name, and the size of the data where the layout is known. */
static bee_status apply_type(const Reader *reader, uint32_t type, bee_tensor_info *out) {
    if (type > MAX_TENSOR_TYPE) return fail(reader, BEE_ERROR_FORMAT, "its type is %u, which is no tensor type", type);
    const TensorTypeLayout *layout = tensor_type_layout(type);
    out->type = (int32_t)type;
    out->type_name = layout ? layout->name : "unknown";
    out->supported = layout && layout->runs;
    out->size = 0;
    if (!layout || layout->block_bytes == 0) return BEE_OK;
    if (out->shape[0] % layout->block_elements != 0) {
        return fail(reader, BEE_ERROR_FORMAT, "rows of %llu elements; %s needs a multiple of %u",
                    (unsigned long long)out->shape[0], layout->name, layout->block_elements);
    }
    uint64_t size = out->shape[0] / layout->block_elements;
    bool overflow = __builtin_mul_overflow(size, (uint64_t)layout->block_bytes, &size);
    for (int i = 1; i < MAX_DIMENSIONS; i++) overflow |= __builtin_mul_overflow(size, out->shape[i], &size);
    if (overflow) return fail(reader, BEE_ERROR_FORMAT, "its shape takes more than 2^64 bytes of %s", layout->name);
    out->size = size;
    return BEE_OK;
}

static bee_status take_tensor(Reader *reader, uint64_t alignment, bee_tensor_info *out) {
    bee_status status = take_name(reader, "the name", MAX_NAME_LENGTH);
    if (status != BEE_OK) return status;
    out->name = reader->name;
    out->name_length = reader->name_length;
    uint32_t type;
    if ((status = take_shape(reader, out)) != BEE_OK) return status;
    if ((status = take_u32(reader, "the type", &type)) != BEE_OK) return status;
    if ((status = apply_type(reader, type, out)) != BEE_OK) return status;
    if ((status = take_u64(reader, "the offset", &out->offset)) != BEE_OK) return status;
    if (out->offset % alignment != 0) {
        return fail(reader, BEE_ERROR_FORMAT, "its offset %llu is not a multiple of the file's alignment, %llu",
                    (unsigned long long)out->offset, (unsigned long long)alignment);
    }
    return BEE_OK;
}

/* Turns the offset, which the file counts from the start of all data, into one from the start of the file. */
static bee_status place_tensor(const Reader *reader, uint64_t data_start, bee_tensor_info *tensor) {
    uint64_t begin, end;
    if (__builtin_add_overflow(data_start, tensor->offset, &begin) ||
        __builtin_add_overflow(begin, tensor->size, &end)) {
        return fail(reader, BEE_ERROR_FORMAT, "its offset %llu and size %llu add up to more than 2^64",
                    (unsigned long long)tensor->offset, (unsigned long long)tensor->size);
    }
    if (end > reader->file->size) {
        return fail(reader, BEE_ERROR_FORMAT,
                    "data ends at byte %llu but the file has %llu bytes; the download may be incomplete",
                    (unsigned long long)end, (unsigned long long)reader->file->size);
    }
    tensor->offset = begin;
    return BEE_OK;
}

static bee_status read_tensors(bee_file *file, Reader *reader, uint64_t alignment) {
    reader->section = "tensor";
    reader->entries = file->tensor_count;
    for (uint64_t i = 0; i < file->tensor_count; i++) {
        reader->entry = i;
        reader->name = NULL;
        bee_tensor_info *tensor = &file->tensors[i];
        bee_status status = take_tensor(reader, alignment, tensor);
        if (status != BEE_OK) return status;
        file->tensor_index.entries[i] = (IndexEntry){tensor->name, tensor->name_length, i};
    }
    file->tensor_index.count = file->tensor_count;
    if (!sort_index(&file->tensor_index, reader)) return fail(reader, BEE_ERROR_FORMAT, "the name occurs twice");
    /* No overflow: the position is at most the file's size and the alignment at most 2^31. */
    uint64_t data_start = (reader->position + alignment - 1) / alignment * alignment;
    for (uint64_t i = 0; i < file->tensor_count; i++) {
        reader->name = file->tensors[i].name;
        reader->name_length = file->tensors[i].name_length;
        bee_status status = place_tensor(reader, data_start, &file->tensors[i]);
        if (status != BEE_OK) return status;
        file->holders[i] = file;
    }
    return BEE_OK;
}

/* ---- opening ---------------------------------------------------------------------------------------- */

/* What a file is that does not begin like GGUF, for the things that most often stand in a model's place. */
static const char *foreign_kind(const uint8_t *data, uint64_t size) {
    static const struct {
        const char *start, *kind;
    } kinds[] = {
        {"lmgg", "a model in the old GGML format"},
        {"tjgg", "a model in the old GGJT format"},
        {"fmgg", "a model in the old GGMF format"},
        {"PK\x03\x04", "a ZIP archive or a PyTorch checkpoint"},
        {"version https://git-lfs", "a Git LFS pointer"},
        {"<", "an HTML or XML page"},
        {"FUGG", "a byte-swapped GGUF file"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        size_t length = strlen(kinds[i].start);
        if (size >= length && memcmp(data, kinds[i].start, length) == 0) return kinds[i].kind;
    }
    if (size > 9 && data[8] == '{' && data[9] == '"') return "a safetensors file";
    return NULL;
}

static bee_status check_version(const Reader *reader, uint32_t version) {
    if (version == 3) return BEE_OK;
    if (version == 1 || version == 2) {
        return fail(reader, BEE_ERROR_UNSUPPORTED,
                    "GGUF version %u; only version 3 can be read: convert the model anew", version);
    }
    if (version != 0 && (version & 0xFFFF) == 0) {
        return fail(reader, BEE_ERROR_UNSUPPORTED,
                    "the file is big-endian (byte-swapped); a little-endian file is needed");
    }
    return fail(reader, BEE_ERROR_UNSUPPORTED, "GGUF version %u; only version 3 can be read", version);
}

/* Checks a count of entries against the bytes that they would take at least. */
static bee_status check_count(const Reader *reader, const char *field, uint64_t count, uint64_t smallest) {
    if (count > bytes_left(reader) / smallest) {
        return fail(reader, BEE_ERROR_FORMAT, "%s is %llu, more than the file's %llu bytes can hold", field,
                    (unsigned long long)count, (unsigned long long)reader->file->size);
    }
    if (count > MAX_ENTRIES) {
        return fail(reader, BEE_ERROR_FORMAT, "%s is %llu; the limit is %d", field, (unsigned long long)count,
                    MAX_ENTRIES);
    }
    return BEE_OK;
}

static bee_status read_preamble(bee_file *file, Reader *reader) {
    if (file->n_read < 4 || memcmp(file->data, "GGUF", 4) != 0) {
        const char *kind = foreign_kind(file->data, file->n_read);
        return fail(reader, BEE_ERROR_FORMAT, "not a GGUF file: it does not begin with \"GGUF\"%s%s",
                    kind ? " and looks like " : "", kind ? kind : "");
    }
    reader->position = 4;
    uint32_t version;
    bee_status status = take_u32(reader, "the version", &version);
    if (status != BEE_OK || (status = check_version(reader, version)) != BEE_OK) return status;
    if ((status = take_u64(reader, "the tensor count", &file->tensor_count)) != BEE_OK) return status;
    if ((status = take_u64(reader, "the metadata count", &file->metadata_count)) != BEE_OK) return status;
    if ((status = check_count(reader, "the tensor count", file->tensor_count, SMALLEST_TENSOR)) != BEE_OK)
        return status;
    return check_count(reader, "the metadata count", file->metadata_count, SMALLEST_METADATA);
}

/* Replaces the default in *alignment where the file has one of its own. */
static bee_status read_alignment(const bee_file *file, uint64_t *alignment, bee_error *error) {
    int64_t value = (int64_t)*alignment;
    bee_status status = gguf_int(file, "general.alignment", false, MIN_ALIGNMENT, INT64_C(1) << 31, &value, error);
    if (status != BEE_OK) return status;
    if ((value & (value - 1)) != 0) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata 'general.alignment': %lld is not a power of two",
                        file->label, (long long)value);
    }
    *alignment = (uint64_t)value;
    return BEE_OK;
}

/* Room for `count` elements; at least one, so that NULL always means a failure. */
static void *new_array(uint64_t count, size_t size) { return calloc(count > 0 ? count : 1, size); }

static bee_status parse(bee_file *file, bee_error *error) {
    Reader reader = {.file = file, .section = "header", .error = error};
    bee_status status = read_preamble(file, &reader);
    if (status != BEE_OK) return status;
    file->metadata = new_array(file->metadata_count, sizeof *file->metadata);
    file->metadata_index.entries = new_array(file->metadata_count, sizeof *file->metadata_index.entries);
    file->tensors = new_array(file->tensor_count, sizeof *file->tensors);
    file->tensor_index.entries = new_array(file->tensor_count, sizeof *file->tensor_index.entries);
    file->holders = new_array(file->tensor_count, sizeof *file->holders);
    if (!file->metadata || !file->metadata_index.entries || !file->tensors || !file->tensor_index.entries ||
        !file->holders) {
        return fail(&reader, BEE_ERROR_MEMORY, "no memory for %llu metadata and %llu tensor entries",
                    (unsigned long long)file->metadata_count, (unsigned long long)file->tensor_count);
    }
    uint64_t alignment = DEFAULT_ALIGNMENT;
    if ((status = read_metadata(file, &reader)) != BEE_OK) return status;
    if ((status = read_alignment(file, &alignment, error)) != BEE_OK) return status;
    return read_tensors(file, &reader, alignment);
}

static void drop_entries(bee_file *file) {
    free(file->metadata);
    free(file->metadata_index.entries);
    free(file->tensors);
    free(file->tensor_index.entries);
    free(file->holders);
    file->metadata = NULL;
    file->tensors = NULL;
    file->holders = NULL;
    file->metadata_index.entries = file->tensor_index.entries = NULL;
}

/* Bytes [begin, begin + size) of the file. It may have become shorter since it was opened. */
static bee_status read_bytes(const bee_file *file, uint64_t begin, uint64_t size, uint8_t *out, bee_error *error) {
    for (uint64_t done = 0; done < size;) {
        const uint64_t step = size - done < MOST_READ ? size - done : MOST_READ;
        const ssize_t n = pread(file->descriptor, out + done, (size_t)step, (off_t)(begin + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return bee_fail(error, BEE_ERROR_FILE, "%s: cannot be read: %s", file->label, strerror(errno));
        if (n == 0)
            return bee_fail(error, BEE_ERROR_FILE,
                            "%s: byte %llu is gone: the file had %llu bytes when it was opened, and was truncated or "
                            "overwritten meanwhile",
                            file->label, (unsigned long long)(begin + done), (unsigned long long)file->size);
        done += (uint64_t)n;
    }
    return BEE_OK;
}

/* Nothing of the file is mapped: what somebody else does to it must not end this process. */
static bee_status open_descriptor(bee_file *file, const char *path, bee_error *error) {
    /* O_NONBLOCK: opening a pipe that nobody writes to must not wait. It means nothing to a regular file. */
    file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->descriptor < 0) {
        return bee_fail(error, BEE_ERROR_FILE, "%s: cannot be opened: %s", file->label, strerror(errno));
    }
    struct stat about;
    if (fstat(file->descriptor, &about) != 0) {
        return bee_fail(error, BEE_ERROR_FILE, "%s: cannot be examined: %s", file->label, strerror(errno));
    }
    if (S_ISDIR(about.st_mode)) {
        return bee_fail(error, BEE_ERROR_FILE, "%s: a directory; the path of a GGUF file is needed", file->label);
    }
    if (!S_ISREG(about.st_mode)) {
        return bee_fail(error, BEE_ERROR_FILE, "%s: a pipe or device; a regular file is needed", file->label);
    }
    if (about.st_size <= 0) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: the file is empty; a GGUF file is needed", file->label);
    }
    file->size = (uint64_t)about.st_size;
    return BEE_OK;
}

/* Reads the file's first `n` bytes, into memory of exactly that size: what reads past them, sanitizers see. */
static bee_status read_beginning(bee_file *file, uint64_t n, bee_error *error) {
    free(file->data);
    file->n_read = 0;
    file->data = malloc((size_t)n);
    if (!file->data)
        return bee_fail(error, BEE_ERROR_MEMORY, "%s: no memory for its first %llu bytes", file->label,
                        (unsigned long long)n);
    const bee_status status = read_bytes(file, 0, n, file->data, error);
    if (status == BEE_OK) file->n_read = n;
    return status;
}

/* How long the beginning is, only its end tells: it is read and parsed again, twice as much of it, until it is whole.
 */
static bee_status read_and_parse(bee_file *file, bee_error *error) {
    uint64_t n = FIRST_READ;
    for (;;) {
        if (n > file->size) n = file->size;
        file->wants_more = false;
        bee_status status = read_beginning(file, n, error);
        if (status == BEE_OK) status = parse(file, error);
        if (!file->wants_more) return status;
        drop_entries(file);
        n *= 2;
    }
}

static bee_file *open_one(const char *path, bee_error *error) {
    bee_file *file = calloc(1, sizeof *file);
    if (!file) {
        bee_fail(error, BEE_ERROR_MEMORY, "no memory to open a file");
        return NULL;
    }
    set_label(file->label, path);
    file->descriptor = -1;
    if (open_descriptor(file, path, error) == BEE_OK && read_and_parse(file, error) == BEE_OK) return file;
    bee_file_close(file);
    return NULL;
}

/* ---- split models ----------------------------------------------------------------------------------- */

typedef struct Split {
    int64_t number, count; /* of a part, from 0, and of all; a count of 0 or 1: the file is whole */
} Split;

static bee_status read_split(const bee_file *file, Split *out, bee_error *error) {
    *out = (Split){0, 1};
    bee_status status = gguf_int(file, "split.count", false, 0, MAX_PARTS, &out->count, error);
    if (status != BEE_OK || out->count <= 1) return status;
    return gguf_int(file, "split.no", true, 0, out->count - 1, &out->number, error);
}

static bee_status check_split_name(const bee_file *file, const char *path, Split split, bee_error *error) {
    int number, count;
    if (split_numbers(path, &number, &count) && number == split.number + 1 && count == split.count) return BEE_OK;
    return bee_fail(error, BEE_ERROR_FORMAT,
                    "%s: it is part %lld of %lld of a split model; its name must end in -%05lld-of-%05lld.gguf for the "
                    "others to be found",
                    file->label, (long long)split.number + 1, (long long)split.count, (long long)split.number + 1,
                    (long long)split.count);
}

/* Part `number`, from 0, of the model that `path` is a part of; NULL: failed. */
static bee_file *open_part(const char *path, int64_t number, int64_t count, bee_error *error) {
    char *part_path = split_part_path(path, (int)number + 1);
    if (!part_path) {
        bee_fail(error, BEE_ERROR_MEMORY, "no memory for the path of a part");
        return NULL;
    }
    bee_file *part = open_one(part_path, error);
    free(part_path);
    if (!part) return NULL;
    Split split;
    bee_status status = read_split(part, &split, error);
    if (status == BEE_OK && (split.number != number || split.count != count))
        status = bee_fail(error, BEE_ERROR_FORMAT, "%s: by its metadata it is part %lld of %lld", part->label,
                          (long long)split.number + 1, (long long)split.count);
    if (status == BEE_OK) return part;
    bee_file_close(part);
    return NULL;
}

/* Room for `more` tensors beside those that are there. */
static bool make_room(bee_file *file, uint64_t more) {
    const uint64_t count = file->tensor_count + more;
    void *tensors = realloc(file->tensors, count * sizeof *file->tensors);
    if (tensors) file->tensors = tensors;
    void *holders = realloc(file->holders, count * sizeof *file->holders);
    if (holders) file->holders = holders;
    void *entries = realloc(file->tensor_index.entries, count * sizeof *file->tensor_index.entries);
    if (entries) file->tensor_index.entries = entries;
    return tensors && holders && entries;
}

/* The part's tensors become the file's, too. */
static bee_status join_part(bee_file *file, const bee_file *part, bee_error *error) {
    if (part->tensor_count == 0) return BEE_OK;
    if (part->tensor_count > MAX_ENTRIES - file->tensor_count)
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: its parts have more than %d tensors", file->label, MAX_ENTRIES);
    if (!make_room(file, part->tensor_count))
        return bee_fail(error, BEE_ERROR_MEMORY, "%s: no memory for the tensors of its parts", file->label);
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        const bee_tensor_info *tensor = &part->tensors[i];
        const uint64_t place = file->tensor_count++;
        file->tensors[place] = *tensor;
        file->holders[place] = part;
    }
    return BEE_OK;
}

static bee_status check_whole(bee_file *file, bee_error *error) {
    Reader reader = {.file = file, .section = "tensor", .error = error};
    file->tensor_index.count = file->tensor_count;
    for (uint64_t i = 0; i < file->tensor_count; i++)
        file->tensor_index.entries[i] = (IndexEntry){file->tensors[i].name, file->tensors[i].name_length, i};
    if (!sort_index(&file->tensor_index, &reader))
        return fail(&reader, BEE_ERROR_FORMAT, "the name occurs twice, in two parts of the model");
    int64_t stated = (int64_t)file->tensor_count;
    bee_status status = gguf_int(file, "split.tensors.count", false, 0, MAX_ENTRIES, &stated, error);
    if (status != BEE_OK || (uint64_t)stated == file->tensor_count) return status;
    return bee_fail(error, BEE_ERROR_FORMAT, "%s: its parts have %llu tensors; there should be %lld", file->label,
                    (unsigned long long)file->tensor_count, (long long)stated);
}

/* The first part becomes the whole model: its metadata, and the tensors of all parts. */
static bee_status open_parts(bee_file *file, const char *path, int64_t count, bee_error *error) {
    file->parts = new_array((uint64_t)count, sizeof *file->parts);
    if (!file->parts) return bee_fail(error, BEE_ERROR_MEMORY, "no memory for %lld parts", (long long)count);
    file->part_count = 1;
    while (file->part_count < count) {
        bee_file *part = open_part(path, file->part_count, count, error);
        if (!part) return BEE_ERROR_FILE; /* or another: *error has it */
        file->parts[file->part_count++] = part;
        bee_status status = join_part(file, part, error);
        if (status != BEE_OK) return status;
    }
    return check_whole(file, error);
}

/* The whole model that `file`, opened from `path`, is a part of, or `file` itself; NULL, and it is closed: failed. */
static bee_file *open_whole(bee_file *file, const char *path, bee_error *error) {
    Split split;
    bee_status status = read_split(file, &split, error);
    if (status == BEE_OK && split.count <= 1) return file;
    if (status == BEE_OK) status = check_split_name(file, path, split, error);
    if (status == BEE_OK && split.number > 0) {
        bee_file_close(file);
        file = open_part(path, 0, split.count, error);
        if (!file) return NULL;
    }
    if (status == BEE_OK) status = open_parts(file, path, split.count, error);
    if (status == BEE_OK) return file;
    bee_file_close(file);
    return NULL;
}

bee_file *bee_file_open(const char *path, bee_error *error) {
    if (!path || !*path) {
        bee_fail(error, BEE_ERROR_ARGUMENT, "the path is empty; the path of a GGUF file is needed");
        return NULL;
    }
    bee_file *file = open_one(path, error);
    return file ? open_whole(file, path, error) : NULL;
}

void bee_file_close(bee_file *file) {
    if (!file) return;
    for (int i = 1; i < file->part_count; i++) bee_file_close(file->parts[i]);
    free(file->parts);
    drop_entries(file);
    free(file->data);
    if (file->descriptor >= 0) close(file->descriptor);
    free(file);
}

/* ---- by number -------------------------------------------------------------------------------------- */

uint64_t bee_file_size(const bee_file *file) {
    uint64_t size = file->size;
    for (int i = 1; i < file->part_count; i++) size += file->parts[i]->size;
    return size;
}

uint64_t bee_file_metadata_count(const bee_file *file) { return file->metadata_count; }

bee_status bee_file_metadata(const bee_file *file, uint64_t index, bee_metadata *out, bee_error *error) {
    if (index >= file->metadata_count) {
        return bee_fail(error, BEE_ERROR_ARGUMENT, "%s: metadata index %llu; the file has %llu entries, from 0",
                        file->label, (unsigned long long)index, (unsigned long long)file->metadata_count);
    }
    *out = file->metadata[index];
    return BEE_OK;
}

uint64_t bee_file_tensor_count(const bee_file *file) { return file->tensor_count; }

bee_status bee_file_tensor(const bee_file *file, uint64_t index, bee_tensor_info *out, bee_error *error) {
    if (index >= file->tensor_count) {
        return bee_fail(error, BEE_ERROR_ARGUMENT, "%s: tensor index %llu; the file has %llu tensors, from 0",
                        file->label, (unsigned long long)index, (unsigned long long)file->tensor_count);
    }
    *out = file->tensors[index];
    return BEE_OK;
}

/* ---- by name ---------------------------------------------------------------------------------------- */

bool gguf_has_tensor(const bee_file *file, const char *name) {
    uint64_t position;
    return look_up(&file->tensor_index, name, &position);
}

bee_status gguf_tensor(const bee_file *file, const char *name, Tensor *out, bee_error *error) {
    uint64_t position;
    if (!look_up(&file->tensor_index, name, &position)) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: tensor '%s' is missing", file->label, name);
    }
    const bee_tensor_info *info = &file->tensors[position];
    if (!info->supported && info->type != TYPE_I64) {
        return bee_fail(error, BEE_ERROR_UNSUPPORTED,
                        "%s: tensor '%s' has type %s (%d), which cannot be run; the types that can are %s", file->label,
                        name, info->type_name, info->type, tensor_types_that_run);
    }
    *out = (Tensor){
        .name = info->name,
        .name_length = (int)info->name_length,
        .type = (TensorType)info->type,
        .n_dimensions = info->n_dimensions,
        .columns = (int64_t)info->shape[0],
        .rows = (int64_t)(info->shape[1] * info->shape[2] * info->shape[3]),
        .holder = file->holders[position],
        .offset = info->offset,
        .size = info->size,
    };
    for (int i = 0; i < MAX_DIMENSIONS; i++) out->shape[i] = (int64_t)info->shape[i];
    return BEE_OK;
}

bee_status gguf_read(const Tensor *tensor, uint8_t *out, bee_error *error) {
    return read_bytes(tensor->holder, tensor->offset, tensor->size, out, error);
}

void gguf_read_ahead(const bee_file *holder, uint64_t begin, uint64_t end) {
    if (end > holder->size) end = holder->size;
#ifdef POSIX_FADV_WILLNEED
    if (begin < end) posix_fadvise(holder->descriptor, (off_t)begin, (off_t)(end - begin), POSIX_FADV_WILLNEED);
#endif
}

/* A page in the middle of a tensor. */
static bee_status add_sample(const bee_file *holder, const bee_tensor_info *tensor, uint64_t *sum, bee_error *error) {
    uint8_t sample[4096];
    const uint64_t n = tensor->size < sizeof sample ? tensor->size : sizeof sample;
    const bee_status status = read_bytes(holder, tensor->offset + (tensor->size - n) / 2, n, sample, error);
    if (status == BEE_OK) *sum = checksum(sample, (size_t)n, *sum);
    return status;
}

static bee_status add_identity(const bee_file *part, FileIdentity *out, bee_error *error) {
    struct stat about;
    if (fstat(part->descriptor, &about) != 0)
        return bee_fail(error, BEE_ERROR_FILE, "%s: cannot be examined: %s", part->label, strerror(errno));
#if defined(__APPLE__)
    const struct timespec changed = about.st_mtimespec;
#else
    const struct timespec changed = about.st_mtim;
#endif
    const int64_t time[] = {(int64_t)changed.tv_sec, (int64_t)changed.tv_nsec};
    out->size += (uint64_t)about.st_size;
    out->time = checksum(time, sizeof time, out->time);
    out->beginning = checksum(part->data, (size_t)part->n_read, out->beginning);
    return BEE_OK;
}

bee_status gguf_identity(const bee_file *file, FileIdentity *out, bee_error *error) {
    *out = (FileIdentity){0};
    bee_status status = add_identity(file, out, error);
    for (int i = 1; i < file->part_count && status == BEE_OK; i++) status = add_identity(file->parts[i], out, error);
    for (uint64_t i = 0; i < file->tensor_count && status == BEE_OK; i++)
        status = add_sample(file->holders[i], &file->tensors[i], &out->samples, error);
    return status;
}

bool gguf_find(const bee_file *file, const char *key, bee_metadata *out) {
    uint64_t position;
    if (!look_up(&file->metadata_index, key, &position)) return false;
    *out = file->metadata[position];
    return true;
}

/* Finds a key for one of the readers below; *found tells whether there is anything to read. */
static bee_status find(const bee_file *file, const char *key, bool required, bee_metadata *out, bool *found,
                       bee_error *error) {
    *found = gguf_find(file, key, out);
    if (*found || !required) return BEE_OK;
    return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' is missing", file->label, key);
}

static bee_status wrong_type(const bee_file *file, const char *key, const bee_metadata *value, const char *wanted,
                             bee_error *error) {
    if (value->type == BEE_VALUE_ARRAY) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' is an array of %llu of type %s; it must be %s",
                        file->label, key, (unsigned long long)value->count, value_types[value->element_type].name,
                        wanted);
    }
    return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' is of type %s; it must be %s", file->label, key,
                    value_types[value->type].name, wanted);
}

static bool is_integer(bee_value_type type) {
    switch (type) {
    case BEE_VALUE_UINT8:
    case BEE_VALUE_INT8:
    case BEE_VALUE_UINT16:
    case BEE_VALUE_INT16:
    case BEE_VALUE_UINT32:
    case BEE_VALUE_INT32:
    case BEE_VALUE_UINT64:
    case BEE_VALUE_INT64: return true;
    default: return false;
    }
}

/* One element of an integer type; false where it is beyond 2^63 - 1. */
static bool load_integer(bee_value_type type, const uint8_t *bytes, int64_t *out) {
    uint64_t raw = 0;
    memcpy(&raw, bytes, value_types[type].size);
    switch (type) {
    case BEE_VALUE_INT8: *out = (int8_t)raw; return true;
    case BEE_VALUE_INT16: *out = (int16_t)raw; return true;
    case BEE_VALUE_INT32: *out = (int32_t)raw; return true;
    case BEE_VALUE_INT64: *out = (int64_t)raw; return true;
    default: *out = (int64_t)raw; return raw <= INT64_MAX;
    }
}

bee_status gguf_int(const bee_file *file, const char *key, bool required, int64_t low, int64_t high, int64_t *out,
                    bee_error *error) {
    bee_metadata value;
    bool found;
    bee_status status = find(file, key, required, &value, &found, error);
    if (status != BEE_OK || !found) return status;
    if (!is_integer(value.type)) return wrong_type(file, key, &value, "an integer", error);
    int64_t number;
    if (!load_integer(value.type, value.data, &number)) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' is %llu; it must be between %lld and %lld",
                        file->label, key, (unsigned long long)number, (long long)low, (long long)high);
    }
    if (number < low || number > high) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' is %lld; it must be between %lld and %lld",
                        file->label, key, (long long)number, (long long)low, (long long)high);
    }
    *out = number;
    return BEE_OK;
}

bee_status gguf_float(const bee_file *file, const char *key, bool required, double *out, bee_error *error) {
    bee_metadata value;
    bool found;
    bee_status status = find(file, key, required, &value, &found, error);
    if (status != BEE_OK || !found) return status;
    double number;
    if (value.type == BEE_VALUE_FLOAT32) {
        float narrow;
        memcpy(&narrow, value.data, sizeof narrow);
        number = narrow;
    } else if (value.type == BEE_VALUE_FLOAT64) {
        memcpy(&number, value.data, sizeof number);
    } else {
        return wrong_type(file, key, &value, "a float32 or float64", error);
    }
    if (!isfinite(number)) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' is %f; it must be a finite number", file->label,
                        key, number);
    }
    *out = number;
    return BEE_OK;
}

bee_status gguf_bool(const bee_file *file, const char *key, bool required, bool *out, bee_error *error) {
    bee_metadata value;
    bool found;
    bee_status status = find(file, key, required, &value, &found, error);
    if (status != BEE_OK || !found) return status;
    if (value.type != BEE_VALUE_BOOL) return wrong_type(file, key, &value, "a bool", error);
    *out = *(const uint8_t *)value.data != 0;
    return BEE_OK;
}

bee_status gguf_string(const bee_file *file, const char *key, bool required, char *out, size_t capacity,
                       bee_error *error) {
    bee_metadata value;
    bool found;
    bee_status status = find(file, key, required, &value, &found, error);
    if (status != BEE_OK || !found) return status;
    if (value.type != BEE_VALUE_STRING) return wrong_type(file, key, &value, "a string", error);
    const uint8_t *text = (const uint8_t *)value.data + sizeof(uint64_t);
    uint64_t length = value.size - sizeof(uint64_t);
    if (length >= capacity) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' has %llu bytes of text; it may have %llu",
                        file->label, key, (unsigned long long)length,
                        (unsigned long long)(capacity > 0 ? capacity - 1 : 0));
    }
    if (memchr(text, '\0', length)) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' has a NUL in its text", file->label, key);
    }
    memcpy(out, text, length);
    out[length] = '\0';
    return BEE_OK;
}

bee_status gguf_ints(const bee_file *file, const char *key, bool required, int32_t *out, int capacity, int *count,
                     bee_error *error) {
    bee_metadata value;
    bool found;
    bee_status status = find(file, key, required, &value, &found, error);
    if (status != BEE_OK || !found) return status;
    bool array_of_bools = value.type == BEE_VALUE_ARRAY && value.element_type == BEE_VALUE_BOOL; /* per-layer flags */
    if (!is_integer(value.element_type) && !array_of_bools) {
        return wrong_type(file, key, &value, "an integer or an array of integers or bools", error);
    }
    if (value.count > (uint64_t)capacity) {
        return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s' has %llu elements; it may have %d", file->label,
                        key, (unsigned long long)value.count, capacity);
    }
    const uint8_t *bytes = value.data;
    for (uint64_t i = 0; i < value.count; i++, bytes += value_types[value.element_type].size) {
        int64_t number;
        if (!load_integer(value.element_type, bytes, &number) || number < INT32_MIN || number > INT32_MAX) {
            return bee_fail(error, BEE_ERROR_FORMAT, "%s: metadata '%s': element %llu does not fit into 32 bits",
                            file->label, key, (unsigned long long)i);
        }
        out[i] = (int32_t)number;
    }
    *count = (int)value.count;
    return BEE_OK;
}

static uint64_t fnv1a(uint64_t hash, const uint8_t *bytes, uint64_t size) {
    for (uint64_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001B3);
    return hash;
}

/* Hashed are the count and then the array as it lies in the file, so the lengths keep neighbours apart. */
uint64_t gguf_vocabulary_hash(const bee_file *file, uint64_t *count) {
    bee_metadata tokens;
    *count = 0;
    if (!gguf_find(file, "tokenizer.ggml.tokens", &tokens)) return 0;
    if (tokens.type != BEE_VALUE_ARRAY || tokens.element_type != BEE_VALUE_STRING) return 0;
    *count = tokens.count;
    uint64_t hash = fnv1a(UINT64_C(0xCBF29CE484222325), (const uint8_t *)&tokens.count, sizeof tokens.count);
    return fnv1a(hash, tokens.data, tokens.size);
}
