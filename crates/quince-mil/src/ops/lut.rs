//! `constexpr_lut_to_dense`: weights as indices into lookup tables, as iOS 16 and as iOS 18 store them.

use super::blockwise::fixed_shape;
use super::layout::{Cells, count, filled, fixed, from_cells, group_runs, result, result_shape};
use super::shape_rules::axis;
use crate::{Args, DType, Op, Opset, Param, Result, Tensor, ValueType, bail};
use quince_tensor::packing::unpack;

/// See [`Op::doc`].
pub struct LutToDense;

impl Op for LutToDense {
    fn name(&self) -> &'static str {
        "constexpr_lut_to_dense"
    }

    fn doc(&self) -> &'static str {
        "The entry of a lookup table for each index. iOS 18: `indices` of type uintN, `lut` [groups.., 2^N, V] with as \
         many groups along each axis as divide its size; with V > 1 each index stands for V elements that follow each \
         other along `vector_axis`. iOS 16: `indices` are packed bytes of a tensor of `shape`, `lut` is one table of 2, \
         4, 16, 64 or 256 entries."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("indices").constant(),
                Param::new("lut").constant().types(TABLE),
                Param::new("vector_axis").constant().optional(),
                Param::new("shape").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML6
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let dtype = args.dtype("lut")?;
        match args.has("shape") {
            true => result(dtype, fixed(&packed(args)?.0)),
            false => {
                let tables = Tables::new(args, "indices", fixed_shape(args, "indices")?)?;
                result(dtype, fixed(&tables.dense_shape()?))
            }
        }
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (indices, lut) = (args.tensor("indices")?, args.tensor("lut")?);
        if !args.has("shape") {
            let tables = Tables::new(args, "indices", indices.shape().to_vec())?;
            return Ok(vec![tables.look_up(&indices.codes()?, &lut)?]);
        }
        let codes = unpack(indices.bytes(), packed(args)?.1, 0, count(&shape)?)?;
        let groups = vec![1; shape.len()];
        let tables = Tables { shape, groups, entries: lut.len(), vector: None };
        Ok(vec![tables.look_up(&codes, &lut)?])
    }
}

/// Element types of lookup tables.
pub const TABLE: &[DType] = &[DType::I8, DType::U8, DType::F16, DType::F32];

/// The shape and the bits per index of the form of iOS 16.
fn packed(args: &Args) -> Result<(Vec<usize>, usize)> {
    let sizes = args.ints("shape")?;
    let shape: Vec<usize> = sizes.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
    let entries = match fixed_shape(args, "lut")?[..] {
        [entries] if shape.len() == sizes.len() => entries,
        _ => bail!("found a lut {} for the shape {sizes:?}, expected one table", args.ty("lut")?),
    };
    if !entries.is_power_of_two() || !(2..=256).contains(&entries) {
        bail!("found a table of {entries} entries, expected 2, 4, 16, 64 or 256");
    }
    let bits = entries.ilog2() as usize;
    let expected = (count(&shape)? * bits).div_ceil(8);
    if args.dtype("indices")? != DType::U8 || fixed_shape(args, "indices")? != [expected] {
        bail!("found indices of type {}, expected {expected} bytes for shape {shape:?}", args.ty("indices")?);
    }
    Ok((shape, bits))
}

/// The lookup tables of a tensor of indices, in the form of iOS 18.
pub struct Tables {
    shape: Vec<usize>,
    groups: Vec<usize>,
    entries: usize,
    /// The axis along which an index stands for several elements, and how many.
    vector: Option<(usize, usize)>,
}

impl Tables {
    /// The tables for indices of this shape in the parameter `indices`, checked against `lut` and `vector_axis`.
    pub fn new(args: &Args, indices: &str, shape: Vec<usize>) -> Result<Tables> {
        count(&shape)?;
        let dtype = args.dtype(indices)?;
        let lut = fixed_shape(args, "lut")?;
        let [groups @ .., entries, length] = &lut[..] else {
            bail!("found a lut {lut:?}, expected two axes more than the indices {shape:?}");
        };
        let divides = |(&size, &groups): (&usize, &usize)| groups > 0 && size % groups == 0;
        if shape.is_empty() || groups.len() != shape.len() || !shape.iter().zip(groups).all(divides) {
            bail!(
                "found a lut {lut:?}, expected two axes more than the indices {shape:?}, and sizes that divide theirs"
            );
        }
        if !dtype.is_unsigned() || dtype.bits() > 8 || *entries != 1 << dtype.bits() {
            bail!("found indices of type {dtype} and tables of {entries} entries, expected uintN and 2^N entries");
        }
        let vector = match (args.has("vector_axis"), *length) {
            (_, 0) => bail!("found a lut {lut:?} without values"),
            (false, 1) => None,
            (false, length) => bail!("an index stands for {length} elements, expected a `vector_axis`"),
            (true, length) => Some((axis(args.int("vector_axis")?, shape.len())?, length)),
        };
        Ok(Tables { shape, groups: groups.to_vec(), entries: *entries, vector })
    }

    /// The shape after looking up.
    pub fn dense_shape(&self) -> Result<Vec<usize>> {
        let mut shape = self.shape.clone();
        if let Some((axis, length)) = self.vector {
            shape[axis] = shape[axis].saturating_mul(length);
        }
        count(&shape)?;
        Ok(shape)
    }

    /// A value for each index as the values of its elements.
    pub fn repeat(&self, values: &[u8]) -> Result<Vec<u8>> {
        let same: Vec<u8> = (0..=u8::MAX).flat_map(|v| vec![v; self.vector.map_or(1, |(_, length)| length)]).collect();
        let groups = vec![1; self.shape.len()];
        Tables { shape: self.shape.clone(), groups, entries: 256, vector: self.vector }.fill::<1>(values, &same)
    }

    /// The entry for each index.
    pub fn look_up(&self, codes: &[u8], lut: &Tensor) -> Result<Tensor> {
        let shape = self.dense_shape()?;
        let cells = Cells::of(lut)?;
        let out = match cells.width {
            1 => self.fill::<1>(codes, &cells.bytes)?,
            2 => self.fill::<2>(codes, &cells.bytes)?,
            _ => self.fill::<4>(codes, &cells.bytes)?,
        };
        from_cells(lut.dtype(), &shape, out)
    }

    fn fill<const W: usize>(&self, codes: &[u8], lut: &[u8]) -> Result<Vec<u8>> {
        let (lut, _) = lut.as_chunks::<W>();
        let (axis, length) = self.vector.unwrap_or((0, 1));
        let inner = count(&self.shape[(axis + 1).min(self.shape.len())..])?;
        let mut out = filled(codes.len() * length, [0u8; W])?;
        group_runs(&self.shape, &self.groups, |first, len, group| {
            let table = &lut[group * self.entries * length..][..self.entries * length];
            let run = codes[first..first + len].iter().map(|&code| usize::from(code));
            if length == 1 {
                out[first..first + len].iter_mut().zip(run).for_each(|(out, code)| *out = table[code]);
                return;
            }
            for (i, code) in (first..).zip(run) {
                for v in 0..length {
                    out[(i / inner * length + v) * inner + i % inner] = table[code * length + v];
                }
            }
        })?;
        Ok(out.into_flattened())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;
    use quince_tensor::packing::pack;

    fn look_up(dtype: DType, shape: &[usize], codes: &[u8], lut: Value, vector_axis: Option<i32>) -> Result<Tensor> {
        let indices = Tensor::from_codes(dtype, shape, codes).unwrap();
        let mut values = vec![("indices", indices.into()), ("lut", lut)];
        values.extend(vector_axis.map(|axis| ("vector_axis", axis.into())));
        run(&LutToDense, values)
    }

    #[test]
    fn each_group_has_its_table() {
        let lut = f32s(&[2, 1, 4, 1], &[1., 5., 9., 13., 2., 10., 18., 26.]);
        let codes = [2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3];
        let y = look_up(DType::U2, &[6, 2], &codes, lut, None).unwrap();
        assert_eq!(y.to_f32().unwrap(), [9., 13., 13., 1., 5., 1., 26., 2., 18., 10., 2., 26.]);
        // Groups along both axes: four tables of two entries.
        let y = look_up(DType::U1, &[2, 4], &[0, 1, 0, 1, 0, 1, 0, 1], iota(&[2, 2, 2, 1]), None).unwrap();
        assert_eq!(y.to_f32().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
    }

    #[test]
    fn an_index_may_stand_for_a_vector() {
        let lut = || f32s(&[1, 1, 1, 2, 3], &[1., 2., 3., 4., 5., 6.]);
        let codes = [0, 0, 1, 0, 1, 1, 0, 0];
        let y = look_up(DType::U1, &[2, 2, 2], &codes, lut(), Some(1)).unwrap();
        assert_eq!(y.shape(), [2, 6, 2]);
        assert_eq!(y.to_f32().unwrap()[..12], [1., 1., 2., 2., 3., 3., 4., 1., 5., 2., 6., 3.]);
        let y = look_up(DType::U1, &[2, 2, 2], &codes, lut(), Some(-1)).unwrap();
        assert_eq!(y.shape(), [2, 2, 6]);
        assert_eq!(y.to_f32().unwrap()[..12], [1., 2., 3., 1., 2., 3., 4., 5., 6., 1., 2., 3.]);
        assert!(look_up(DType::U1, &[2, 2, 2], &codes, lut(), None).is_err());
    }

    #[test]
    fn indices_of_three_bits_straddle_bytes() {
        let codes: Vec<u8> = (0..11).map(|i| (i * 5) % 8).collect();
        let expected: Vec<f32> = codes.iter().map(|&c| f32::from(c) * 10.0).collect();
        let lut = f32s(&[1, 8, 1], &[0., 10., 20., 30., 40., 50., 60., 70.]);
        assert_eq!(look_up(DType::U3, &[11], &codes, lut, None).unwrap().to_f32().unwrap(), expected);
    }

    #[test]
    fn the_form_of_ios_16_is_packed_bytes() {
        let run16 = |bytes: Vec<u8>, entries: usize, shape: u32| {
            let shape = Tensor::vector(vec![1u32, shape]);
            run(&LutToDense, vec![("indices", Value::from(bytes)), ("lut", iota(&[entries])), ("shape", shape.into())])
        };
        let y = run16(vec![0b0110_1100, 0b11], 4, 5).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 5][..], vec![0., 3., 2., 1., 3.]));
        assert_eq!(run16(pack(&[63, 1, 2], 6), 64, 3).unwrap().to_f32().unwrap(), [63., 1., 2.]);
        assert!(run16(vec![0; 3], 4, 5).is_err() && run16(vec![0; 2], 3, 5).is_err());
        assert!(run16(vec![0; 2], 4, u32::MAX).is_err());
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let no = |dtype, lut: &[usize]| look_up(dtype, &[4], &[0; 4], iota(lut), None).is_err();
        assert!(no(DType::U2, &[1, 8, 1]) && no(DType::U2, &[3, 4, 1]) && no(DType::U2, &[0, 4, 1]));
        assert!(no(DType::U2, &[4, 1]) && no(DType::U2, &[1, 4, 0]) && no(DType::I4, &[1, 16, 1]));
    }
}
