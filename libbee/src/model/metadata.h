/* Reading "<architecture>.<suffix>" keys. The first failure is remembered, so that a list of reads stays a list. */
#ifndef BEE_METADATA_H
#define BEE_METADATA_H

#include "shape.h"

typedef struct MetadataReader {
    const bee_file *file;
    const char *prefix; /* the architecture's name */
    bee_error *error;
    bee_status status;
} MetadataReader;

bool has_key(const MetadataReader *r, const char *suffix);
/* An absent key gives `fallback` where it is not required. */
int64_t read_int(MetadataReader *r, const char *suffix, bool required, int64_t fallback, int64_t low, int64_t high);
double read_float(MetadataReader *r, const char *suffix, bool required, double fallback);
bool read_bool(MetadataReader *r, const char *suffix, bool fallback);
void read_string(MetadataReader *r, const char *suffix, char *out, size_t capacity); /* `out` holds the fallback */
/* Fails with the key and a reason, unless something has failed before. */
void refuse(MetadataReader *r, const char *suffix, const char *why);

/* ---- what most architectures have in common -------------------------------------------------------- */

/* Sizes, norms, heads and feed-forward of a decoder whose layers are all alike. */
void read_decoder(MetadataReader *r, Shape *shape);
/* Rotation of all layers' heads; pairs (i, i + n_rotated / 2) where `neox`, else (2 i, 2 i + 1). */
void read_rope(MetadataReader *r, Shape *shape, bool neox);
/* Features that other families have and this library does not compute here: better refused than ignored. */
void refuse_experts(MetadataReader *r);
void refuse_window(MetadataReader *r, const Shape *shape);
void refuse_not_causal(MetadataReader *r);

#endif
