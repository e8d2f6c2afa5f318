/* What files say of recurrent layers. */
#ifndef BEE_RECURRENCES_H
#define BEE_RECURRENCES_H

#include "metadata.h"

/* Which layers are recurrent: "attention.recurrent_layers", or all but every full_attention_interval-th. */
void read_recurrent_layers(MetadataReader *r, Shape *shape, bool *recurrent);

/* These make layers recurrent, and fill in what the "ssm" keys say. Gated delta net: heads with keys of their own in
 * turn where `alternating`, as Recurrence has it. */
void read_delta_net(MetadataReader *r, Shape *shape, const bool *recurrent, bool alternating);

/* Mamba-2: results are normed in as many groups as keys. */
void read_mamba(MetadataReader *r, Shape *shape, const bool *recurrent);
/* Short convolutions, of as many rows as the key "shortconv.l_cache" says. */
void read_short_convolution(MetadataReader *r, Shape *shape, const bool *recurrent);

/* Sizes of a model whose layers mix positions, or feed forward, but not both: the latter where the file gives them a
 * width, and recurrent where there is none and no heads of keys. */
void read_one_half_layers(MetadataReader *r, Shape *shape, bool *recurrent);
/* Once more, where experts were read for all layers since. */
void remove_feed_forwards_of_mixers(Shape *shape);

/* What the heads of all layers that attend give is gated. */
void set_gated_heads(Shape *shape);

#endif
