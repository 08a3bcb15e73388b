//! The table of operations, and the shape rules that several of them share.
//!
//! A new operation is one file here and one line in the table: text, packages, verifier, engine and `quince ops` need
//! nothing more.

use crate::Op;

pub(crate) mod elements;
#[cfg(test)]
mod hostile;
pub(crate) mod layout;
pub mod shape_rules;
pub mod special;
#[cfg(test)]
mod testing;
mod window;

macro_rules! table {
    ($($file:ident: $($op:ident),+;)*) => {
        $(mod $file;)*

        /// Every operation, by file.
        pub const OPS: &[&dyn Op] = &[$($(&$file::$op),+),*];
    };
}

table! {
    activation: RELU, RELU6, SIGMOID, SILU, SOFTPLUS, SOFTSIGN, ELU, LEAKY_RELU, THRESHOLDED_RELU, CLAMPED_RELU,
        LINEAR_ACTIVATION, SCALED_TANH, SIGMOID_HARD, Gelu, PRELU, SOFTPLUS_PARAMETRIC, Softmax;
    attention: ScaledDotProductAttention;
    band_part: BandPart, NonZero;
    batch_space: SpaceToBatch, BatchToSpace, ReverseSequence;
    blockwise: BlockwiseShiftScale, ConstexprCast;
    cast: Cast;
    concat: Concat, Stack;
    constant: Const;
    control_flow: Cond, WhileLoop;
    conv: Conv, ConvTranspose;
    crop: Crop, CropResize;
    cumsum: Cumsum;
    elementwise_binary: ADD, SUB, MUL, REAL_DIV, FLOOR_DIV, MOD, MAXIMUM, MINIMUM, POW, EQUAL, NOT_EQUAL, GREATER,
        GREATER_EQUAL, LESS, LESS_EQUAL, LOGICAL_AND, LOGICAL_OR, LOGICAL_XOR;
    elementwise_unary: ABS, ACOS, ASIN, ATAN, ATANH, CEIL, COS, COSH, ERF, EXP, EXP2, FLOOR, LOGICAL_NOT, ROUND, SIGN,
        SIN, SINH, SQRT, SQUARE, TAN, TANH, CLIP, THRESHOLD, INVERSE, LOG, RSQRT;
    gather: Gather, GatherAlongAxis, GatherNd;
    linear: Linear;
    list: MakeList, ListLength, ListRead, ListWrite, ListGather, ListScatter;
    lstm: Lstm;
    lut: LutToDense;
    matmul: Matmul, Einsum;
    normalization: LayerNorm, BatchNorm, InstanceNorm, L2Norm, LocalResponseNorm;
    pad: Pad;
    pixel: DEPTH_TO_SPACE, SPACE_TO_DEPTH, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE;
    pool: MAX_POOL, AVG_POOL, L2_POOL;
    quantize: Quantize, Dequantize, AffineDequantize;
    random: RANDOM_UNIFORM, RANDOM_NORMAL, RANDOM_BERNOULLI, RandomCategorical;
    range: Shape, Range1d, Fill, FillLike, OneHot;
    recurrent: Gru, Rnn;
    reduction: REDUCE_SUM, REDUCE_MEAN, REDUCE_MAX, REDUCE_MIN, REDUCE_PROD, REDUCE_L1_NORM, REDUCE_L2_NORM,
        REDUCE_SUM_SQUARE, REDUCE_LOG_SUM, REDUCE_LOG_SUM_EXP, REDUCE_ARGMAX, REDUCE_ARGMIN;
    reshape: Reshape, ReshapeLike, ExpandDims, Squeeze, Flatten2d, Identity;
    resample: Resample, Affine;
    resize: Resize, ResizeBilinear, ResizeNearestNeighbor;
    scatter: SCATTER, SCATTER_ALONG_AXIS, SCATTER_ND;
    select: Select;
    semantic_attention: SplitHeads, Rope, Attention;
    semantic_embedding: Embedding, Logits;
    semantic_experts: Experts;
    semantic_norm: RmsNorm;
    semantic_pool: Pool;
    semantic_positions: AddPositions, RelativeBias;
    slice: SliceByIndex, SliceUpdate, SliceBySize;
    sorting: Argsort, Topk;
    sparse: SparseToDense, LutToSparse, SparseBlockwiseShiftScale;
    split: Split;
    state: ReadState, WriteState;
    suppression: NonMaximumSuppression;
    tile: Tile, SlidingWindows;
    transpose: Transpose, Reverse;
    upsample: UpsampleNearestNeighbor, UpsampleBilinear;
}

pub use semantic_positions::Buckets;

/// The operation of this name.
pub fn find(name: &str) -> Option<&'static dyn Op> {
    use std::collections::HashMap;
    use std::sync::LazyLock;
    static BY_NAME: LazyLock<HashMap<&str, &'static dyn Op>> =
        LazyLock::new(|| OPS.iter().map(|op| (op.name(), *op)).collect());
    BY_NAME.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parameters_are_unique() {
        for (i, op) in OPS.iter().enumerate() {
            assert!(OPS[..i].iter().all(|other| other.name() != op.name()), "{} is there twice", op.name());
            for (j, param) in op.params().iter().enumerate() {
                assert!(op.params()[..j].iter().all(|p| p.name != param.name), "{}: {}", op.name(), param.name);
            }
        }
    }
}
