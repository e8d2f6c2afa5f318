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

/* A number for every layer: one for all of them, or an array of as many. */
void read_layer_ints(MetadataReader *r, const Shape *shape, const char *suffix, bool required, int fallback, int low,
                     int high, int *out);

/* ---- what most architectures have in common -------------------------------------------------------- */

/* Sizes, the eps of norms (from the key `eps`), heads and feed-forward. */
void read_decoder_with_eps(MetadataReader *r, Shape *shape, const char *eps);
/* The same with latent attention (MLA), which mistral4 has, too: heads and their rotation. */
void read_latent_decoder(MetadataReader *r, Shape *shape);
void read_decoder(MetadataReader *r, Shape *shape); /* eps of RMS norms */
/* The same, where files need not have a width of feed-forwards that are no experts. */
void read_decoder_of_experts(MetadataReader *r, Shape *shape);
/* The same, where layers without heads of keys do not attend: which ones. They may lack a feed-forward, too. */
void read_hybrid(MetadataReader *r, Shape *shape, const char *eps, bool *recurrent);
/* Rotation of the heads of all layers, scaled as the file says; pairs (i, i + n_rotated / 2) where `neox`, else
 * (2 i, 2 i + 1). Returns it, for what a family does otherwise. */
RopeShape *read_rope(MetadataReader *r, Shape *shape, bool neox);
/* Sections of interleaved multimodal positions, which the file must have. */
void read_sections(MetadataReader *r, RopeShape *rope);
/* A second rotation, like the first but for base (from the key `base`) and without scaling; no layer uses it yet. */
int add_plain_rope(MetadataReader *r, Shape *shape, const char *base, double fallback);
/* Windows of so many positions for layers i with i % pattern < pattern - 1 (`sliding_window_pattern` may say
 * otherwise); false where the file has a window of 0. Fallbacks below 0: the key is required. */
bool read_windows(MetadataReader *r, Shape *shape, int window, int pattern);
/* Factors of rope_factors_short and rope_factors_long, for contexts up to the original one and beyond; where the type
 * is "longrope", or in any case. */
void read_long_rope(MetadataReader *r, Shape *shape, bool in_any_case);
/* Embedding, residual and logit scales (which divides), and that of attention; absent or 0: the fallback, or none. The
 * logit scale is required where its fallback is 0. */
void read_scales(MetadataReader *r, Shape *shape, double embedding, double residual, double logit);
/* Columns of an expert: where the file does not say, a feed-forward shared out among those that are used. */
int read_expert_columns(MetadataReader *r, const Shape *shape);
/* Experts of so many columns in all layers from `first` on, where the file has any; weights as a softmax over all,
 * unless the caller changes the layers' routing. False without. */
bool read_experts(MetadataReader *r, Shape *shape, int first, int columns, bool normed);
/* What files may say of the routing of layers with experts: probability, norm and scale of the weights. */
void read_routing(MetadataReader *r, Shape *shape, RouteProbability probability, bool normed);
/* A feed-forward of so many columns for all rows, in layers with experts. */
void set_shared_expert(Shape *shape, int columns);
void set_activation(Shape *shape, Activation activation);
/* Features that other families have and this library does not compute here: better refused than ignored. */
void refuse_experts(MetadataReader *r);
void refuse_not_causal(MetadataReader *r);

#endif
