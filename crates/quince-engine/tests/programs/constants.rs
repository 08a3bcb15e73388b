//! Constants of generated programs: dense, and compressed in every way that `constexpr_*` operations have.

use crate::generate::Generator;
use quince_mil::{Arg, DType, Tensor, Value};

/// A constant of this type, dense or compressed.
pub fn weight(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let packed = match g.choices.below(10) {
        2 | 3 => lut(g, dtype, shape),
        4 | 5 => blockwise(g, dtype, shape),
        6 => sparse(g, dtype, shape),
        7 => affine(g, dtype, shape),
        8 => packed_lut(g, dtype, shape),
        9 => sparse_lut(g, dtype, shape),
        _ => None,
    };
    match packed {
        Some(arg) => Some(arg),
        None => dense(g, dtype, shape),
    }
}

/// A dense constant, in place or as an operation.
pub fn dense(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let tensor = g.choices.tensor(dtype, shape).ok()?;
    Some(g.constant(tensor.into()))
}

/// How many groups there are along each axis: several along at most two of them.
fn groups(g: &mut Generator, shape: &[usize]) -> Option<Vec<usize>> {
    let mut groups = vec![1; shape.len()];
    for _ in 0..2 {
        let axis = g.choices.below(shape.len());
        *groups.get_mut(axis)? = g.choices.divisor(shape[axis]);
    }
    Some(groups)
}

fn lut(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let bits = g.choices.pick(&[4, 1, 2, 3, 6, 8]);
    let mut sizes = shape.to_vec();
    // A vector of two elements for each index.
    let axis = g.choices.below(shape.len());
    let vector = g.choices.rarely(4) && shape.get(axis)?.is_multiple_of(2);
    if vector {
        sizes[axis] /= 2;
    }
    let groups = groups(g, &sizes)?;
    let indices = g.choices.tensor(DType::unsigned(bits)?, &sizes).ok()?;
    let length = if vector { 2 } else { 1 };
    let lut = g.choices.tensor(dtype, &[&groups[..], &[1 << bits, length]].concat()).ok()?;
    let mut inputs = vec![("indices", g.constant(indices.into())), ("lut", g.constant(lut.into()))];
    if vector {
        inputs.push(("vector_axis", Arg::Value((axis as i32).into())));
    }
    g.one("constexpr_lut_to_dense", inputs)
}

/// The form of iOS 16: indices as bytes.
fn packed_lut(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let bits = g.choices.pick(&[4, 1, 2, 6, 8]);
    let count: usize = shape.iter().product();
    let indices = g.choices.tensor(DType::U8, &[(count * bits).div_ceil(8)]).ok()?;
    let lut = g.choices.tensor(dtype, &[1 << bits]).ok()?;
    let shape = Tensor::vector(shape.iter().map(|&n| n as u32).collect::<Vec<u32>>());
    let inputs = vec![("indices", indices.into()), ("lut", lut.into()), ("shape", shape.into())];
    let inputs = inputs.into_iter().map(|(name, value): (_, Value)| (name, g.constant(value))).collect();
    g.one("constexpr_lut_to_dense", inputs)
}

fn blockwise(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let codes = g.choices.pick(&[DType::I4, DType::I8, DType::U4, DType::U8]);
    let groups = groups(g, shape)?;
    let data = g.choices.tensor(codes, shape).ok()?;
    let scale = g.choices.tensor(dtype, &groups).ok()?;
    let mut inputs = vec![("data", g.constant(data.into())), ("scale", g.constant(scale.into()))];
    if g.choices.rarely(2) {
        let offset = g.choices.tensor(codes, &groups).ok()?;
        inputs.push(("offset", g.constant(offset.into())));
    }
    g.one("constexpr_blockwise_shift_scale", inputs)
}

/// The form of iOS 16: scales along one axis.
fn affine(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let codes = g.choices.pick(&[DType::I8, DType::U8]);
    let axis = g.choices.below(shape.len());
    let per_axis: &[usize] = if g.choices.rarely(3) { &[] } else { &[*shape.get(axis)?] };
    let data = g.choices.tensor(codes, shape).ok()?;
    let zero = g.choices.tensor(codes, per_axis).ok()?;
    let scale = g.choices.tensor(dtype, per_axis).ok()?;
    let inputs = vec![
        ("quantized_data", g.constant(data.into())),
        ("zero_point", g.constant(zero.into())),
        ("scale", g.constant(scale.into())),
        ("axis", Arg::Value((axis as i32).into())),
    ];
    g.one("constexpr_affine_dequantize", inputs)
}

/// A mask and how many of its bits are set.
fn mask(g: &mut Generator, shape: &[usize]) -> Option<(Tensor, usize)> {
    let mask = g.choices.tensor(DType::U1, shape).ok()?;
    let kept = mask.codes().ok()?.into_iter().filter(|&bit| bit == 1).count();
    Some((mask, kept))
}

fn sparse(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let (mask, kept) = mask(g, shape)?;
    let data = g.choices.tensor(dtype, &[kept]).ok()?;
    let inputs = vec![("nonzero_data", g.constant(data.into())), ("mask", g.constant(mask.into()))];
    g.one("constexpr_sparse_to_dense", inputs)
}

/// A sparse weight whose elements are a table's, or steps of a scale.
fn sparse_lut(g: &mut Generator, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let (mask, kept) = mask(g, shape)?;
    let groups = groups(g, shape)?;
    let mask = g.constant(mask.into());
    let results = if g.choices.rarely(2) {
        let bits = g.choices.pick(&[4, 1, 2, 3, 6, 8]);
        let indices = g.choices.tensor(DType::unsigned(bits)?, &[kept]).ok()?;
        let lut = g.choices.tensor(dtype, &[&groups[..], &[1 << bits, 1]].concat()).ok()?;
        let (indices, lut) = (g.constant(indices.into()), g.constant(lut.into()));
        let inputs = vec![("indices_mask", mask), ("indices_nonzero_data", indices), ("lut", lut)];
        g.emit("constexpr_lut_to_sparse", inputs)?
    } else {
        let codes = g.choices.pick(&[DType::I4, DType::I8, DType::U4, DType::U8]);
        let data = g.choices.tensor(codes, &[kept]).ok()?;
        let scale = g.choices.tensor(dtype, &groups).ok()?;
        let (data, scale) = (g.constant(data.into()), g.constant(scale.into()));
        let inputs = vec![("data_mask", mask), ("nonzero_data", data), ("scale", scale)];
        g.emit("constexpr_sparse_blockwise_shift_scale", inputs)?
    };
    let &[mask, data] = &results[..] else { return None };
    g.one("constexpr_sparse_to_dense", vec![("nonzero_data", Arg::Var(data)), ("mask", Arg::Var(mask))])
}
