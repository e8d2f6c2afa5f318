/* Weights and tables in memory: read from the file by all threads, each its share, and packed on the way. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"
#include "file/tensor.h"
#include "pack.h"
#include "worker.h"

/* ---- pages -------------------------------------------------------------------------------------- */

enum { HUGE_PAGE = 2 << 20 };

/* Huge pages where the system gives them: a pass reads every weight once, and the page walks would show, most of all in
 * a virtual machine. They must begin at a multiple of their size. */
void *pages_new(size_t bytes) {
    bytes = bytes ? bytes : 1;
    const size_t slack = bytes < HUGE_PAGE ? 0 : HUGE_PAGE, page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *memory = mmap(NULL, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!slack) return memory;
    const size_t before = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
    const size_t kept = (bytes + page - 1) / page * page, mapped = (bytes + slack + page - 1) / page * page;
    if (before) munmap(memory, before);
    if (mapped > before + kept) munmap(memory + before + kept, mapped - before - kept);
#ifdef MADV_HUGEPAGE
    madvise(memory + before, bytes, MADV_HUGEPAGE);
#endif
    return memory + before;
}

void pages_free(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes ? bytes : 1);
}

/* Weights lie one after the other in large regions, because most of them are smaller than a huge page. A region is
 * given back with the backend. */
struct Region {
    Region *next;
    uint8_t *memory;
    size_t bytes, used;
};

enum { REGION_BYTES = 64 << 20 };

static uint8_t *take_weight_memory(Backend *backend, size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    Region *region = backend->regions;
    if (!region || region->bytes - region->used < bytes) {
        region = malloc(sizeof *region);
        if (!region) return NULL;
        *region = (Region){.next = backend->regions, .bytes = bytes < REGION_BYTES ? REGION_BYTES : bytes};
        region->memory = pages_new(region->bytes);
        if (!region->memory) {
            free(region);
            return NULL;
        }
        backend->regions = region;
    }
    region->used += bytes;
    return region->memory + region->used - bytes;
}

void regions_free(Region *region) {
    while (region) {
        Region *next = region->next;
        pages_free(region->memory, region->bytes);
        free(region);
        region = next;
    }
}

/* ---- matrices ----------------------------------------------------------------------------------- */

/* Read at once by a worker: little enough to be in its cache when it is packed. */
enum { READ_BYTES = 128 << 10 };

/* Of what all workers read together. */
typedef struct Reading {
    atomic_bool failed;
    bee_error *reason; /* of the first worker that failed */
} Reading;

static bool read_part(Reading *reading, const Tensor *part, uint8_t *out) {
    bee_error error;
    if (gguf_read(part, out, &error) == BEE_OK) return true;
    if (!atomic_exchange(&reading->failed, true)) *reading->reason = error;
    return false;
}

typedef struct Filling {
    Reading reading;
    Weight *weight;
    const Tensor *tensor;
    const int32_t *row_ids;
} Filling;

static int64_t source_row(const Filling *f, int row) { return f->row_ids ? f->row_ids[row] : row; }

/* Rows [first, last) of the matrix, one behind the other; those that are neighbours in the file together. */
static bool read_rows(Filling *f, int first, int last, uint8_t *out) {
    const uint64_t row_bytes = tensor_row_bytes(f->tensor);
    for (int row = first, n; row < last; row += n, out += (uint64_t)n * row_bytes) {
        n = f->row_ids ? 1 : last - row;
        while (row + n < last && source_row(f, row + n) == source_row(f, row) + n) n++;
        const Tensor part = tensor_rows(f->tensor, source_row(f, row), n);
        if (!read_part(&f->reading, &part, out)) return false;
    }
    return true;
}

/* Some blocks of the matrix, whose rows fit the scratch memory, or are at hand. */
static bool fill_blocks(Worker *w, Filling *f, int first, int last) {
    const uint64_t row_bytes = tensor_row_bytes(f->tensor);
    uint8_t *scratch = (uint8_t *)w->scratch;
    const int begin = first * BLOCK_ROWS,
              end = last * BLOCK_ROWS < f->weight->rows ? last * BLOCK_ROWS : f->weight->rows;
    if (!f->tensor->data && !read_rows(f, begin, end, scratch)) return false;
    for (int block = first; block < last; block++) {
        const uint8_t *rows[BLOCK_ROWS];
        for (int r = 0, row = block * BLOCK_ROWS; r < BLOCK_ROWS && row < end; r++, row++)
            rows[r] = f->tensor->data ? tensor_row(f->tensor, source_row(f, row))
                                      : scratch + (uint64_t)(row - begin) * row_bytes;
        weight_fill_block(f->weight, block, rows);
    }
    return true;
}

static int blocks_together(const Tensor *tensor) {
    const uint64_t together = READ_BYTES / (BLOCK_ROWS * tensor_row_bytes(tensor));
    return together ? (int)together : 1;
}

static void fill_share(Worker *w, void *argument) {
    Filling *f = argument;
    const int n = f->weight->n_blocks, together = blocks_together(f->tensor);
    const int end = share_begin(w, n, w->index + 1);
    for (int first = share_begin(w, n, w->index); first < end && !f->reading.failed; first += together)
        if (!fill_blocks(w, f, first, first + together < end ? first + together : end)) return;
}

void weight_free(Backend *backend, Weight *weight) {
    (void)backend;
    free(weight);
}

/* Room for what is read, and for a head's rows, which may all become candidates. */
static bool reserve_for(Backend *backend, const Tensor *tensor, int n_rows) {
    const size_t read = (size_t)blocks_together(tensor) * BLOCK_ROWS * (size_t)tensor_row_bytes(tensor);
    const size_t choice = (size_t)n_rows * sizeof(Candidate);
    return reserve_scratch(backend, ((read > choice ? read : choice) + sizeof(float) - 1) / sizeof(float));
}

Weight *weight_new(Backend *backend, const Tensor *tensor, const int32_t *row_ids, int n_rows, bee_error *reason) {
    Weight *weight = malloc(sizeof *weight);
    if (!weight) return NULL;
    weight_layout(weight, tensor, n_rows, backend->kernels->planar_grids);
    weight->data = take_weight_memory(backend, weight_bytes(weight));
    Filling filling = {{false, reason}, weight, tensor, row_ids};
    const bool room = weight->data && reserve_for(backend, tensor, n_rows);
    if (room) run_all(backend, fill_share, &filling);
    if (room && !filling.reading.failed) return weight;
    weight_free(backend, weight);
    return NULL;
}

static Weight *weight_at(Backend *backend, const Tensor *tensor, int n_rows, const uint8_t *data) {
    Weight *weight = malloc(sizeof *weight);
    if (!weight || !reserve_for(backend, tensor, n_rows)) {
        free(weight);
        return NULL;
    }
    weight_layout(weight, tensor, n_rows, backend->kernels->planar_grids);
    weight->data = (uint8_t *)data; /* which nobody writes to once it is packed */
    return weight;
}

static const uint8_t *weight_data(const Weight *weight) { return weight->data; }

size_t weight_bytes(const Weight *weight) { return weight->block_bytes * (size_t)weight->n_blocks; }

int operand_format(const Weight *weight) { return traits_of(weight->type).bits ? OPERAND_CODES : OPERAND_VALUES; }

/* ---- tables -------------------------------------------------------------------------------------- */

/* A pass reads a few rows: as the file has them, or of a packed matrix. */
struct Table {
    Tensor tensor;
    size_t bytes;
    uint8_t *rows;
    const Weight *matrix; /* in place of all the above */
};

typedef struct Copying {
    Reading reading;
    const Tensor *tensor;
    uint8_t *out;
} Copying;

static void copy_share(Worker *w, void *argument) {
    Copying *copying = argument;
    const Tensor *tensor = copying->tensor;
    const int rows = (int)tensor->rows, first = share_begin(w, rows, w->index),
              last = share_begin(w, rows, w->index + 1);
    if (first == last) return;
    const Tensor part = tensor_rows(tensor, first, last - first);
    uint8_t *out = copying->out + (uint64_t)first * tensor_row_bytes(tensor);
    if (part.data)
        memcpy(out, part.data, part.size);
    else
        read_part(&copying->reading, &part, out);
}

Table *table_new(Backend *backend, const Tensor *tensor, bee_error *reason) {
    Table *table = malloc(sizeof *table);
    uint8_t *rows = table ? pages_new(tensor->size) : NULL;
    Copying copying = {{false, reason}, tensor, rows};
    if (rows) run_all(backend, copy_share, &copying);
    if (rows && !copying.reading.failed) {
        *table = (Table){.tensor = *tensor, .bytes = tensor->size, .rows = rows};
        table->tensor.data = rows;
        return table;
    }
    pages_free(rows, tensor->size);
    free(table);
    return NULL;
}

Table *table_of_matrix(Backend *backend, const Weight *matrix) {
    (void)backend;
    Table *table = malloc(sizeof *table);
    if (table) *table = (Table){.matrix = matrix};
    return table;
}

void table_free(Backend *backend, Table *table) {
    (void)backend;
    if (table) pages_free(table->rows, table->bytes);
    free(table);
}

int table_row(const Table *table, int row, float *out) {
    if (table->matrix)
        weight_row(table->matrix, row, out);
    else
        dequantize_row(&table->tensor, row, out);
    return table->matrix ? table->matrix->columns : (int)table->tensor.columns;
}

static Table *table_at(Backend *backend, const Tensor *tensor, const uint8_t *data) {
    (void)backend;
    Table *table = malloc(sizeof *table);
    if (table) *table = (Table){.tensor = *tensor};
    if (table) table->tensor.data = data;
    return table;
}

static const uint8_t *table_data(const Table *table) { return table->tensor.data; }

/* ---- as they were packed before ------------------------------------------------------------------- */

static uint64_t packed_form(const Backend *backend) { return 2 * PACKED_VERSION + backend->kernels->planar_grids; }

const PackedOps packed_ops = {packed_form, weight_at, table_at, weight_data, table_data};
