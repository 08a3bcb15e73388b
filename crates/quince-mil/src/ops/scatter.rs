//! `scatter`, `scatter_along_axis` and `scatter_nd`: a tensor with some elements changed.

use super::gather::{depth, integers, offsets_along, offsets_nd, same_but, within};
use super::layout::count;
use super::shape_rules::{axis, show};
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// One of the three: how indices name places.
pub struct Scatter {
    name: &'static str,
    doc: &'static str,
    params: &'static [Param],
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slices,
    AlongAxis,
    Nd,
}

const PARAMS: &[Param] = &[
    Param::new("data"),
    Param::new("indices"),
    Param::new("updates"),
    Param::new("mode").constant().or_str("add"),
    Param::new("validate_indices").constant().or_bool(false),
    Param::new("axis").constant().or_int(0),
];

/// `scatter`.
pub const SCATTER: Scatter = Scatter {
    name: "scatter",
    doc: "data with the slices at `indices` [C] along an axis changed by those of `updates`: `mode` is update, add, sub, \
          mul, div, max or min. An index that comes again acts again, in order.",
    params: PARAMS,
    kind: Kind::Slices,
};

/// `scatter_along_axis`.
pub const SCATTER_ALONG_AXIS: Scatter = Scatter {
    name: "scatter_along_axis",
    doc: "data with the elements changed that `gather_along_axis` would take, each by its element of `updates`: `mode` is \
          update, add, sub, mul, div, max or min.",
    params: PARAMS,
    kind: Kind::AlongAxis,
};

/// `scatter_nd`.
pub const SCATTER_ND: Scatter = Scatter {
    name: "scatter_nd",
    doc: "data with the slices changed that `gather_nd` would take, each by its slice of `updates`: `mode` is update, add, \
          sub, mul, div, max or min.",
    params: PARAMS.split_at(PARAMS.len() - 1).0,
    kind: Kind::Nd,
};

impl Op for Scatter {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        self.params
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (data, updates) = (args.ty("data")?, args.shape("updates")?);
        let indices = integers(args, "indices")?;
        combination(args)?;
        let expected: Vec<Dim> = match self.kind {
            Kind::Slices => {
                let along = axis(args.int("axis")?, data.shape.len())?;
                [&data.shape[..along], indices, &data.shape[along + 1..]].concat()
            }
            Kind::AlongAxis => {
                same_but(&data.shape, indices, axis(args.int("axis")?, data.shape.len())?)?;
                indices.to_vec()
            }
            Kind::Nd => {
                let Some(rest) = data.shape.get(depth(indices)?..) else {
                    bail!("indices {} name more axes than data {} has", show(indices), show(&data.shape));
                };
                [&indices[..indices.len() - 1], rest].concat()
            }
        };
        if updates.len() != expected.len() || !updates.iter().zip(&expected).all(|(a, b)| a.fits(*b)) {
            bail!("found updates {}, expected {}", show(updates), show(&expected));
        }
        Ok(vec![data.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let (data, indices) = (args.tensor("data")?, args.tensor("indices")?);
        let (offsets, len) = self.places(args, data.shape(), &indices)?;
        let combine = combination(args)?;
        let (mut values, updates) = (data.to_f64()?, args.tensor("updates")?.to_f64()?);
        if len > 0 {
            for (offset, update) in offsets.into_iter().zip(updates.chunks_exact(len)) {
                let Some(values) = values.get_mut(offset..offset + len) else {
                    bail!("elements {offset}..{offset}+{len} lie outside of data {data:?}");
                };
                values.iter_mut().zip(update).for_each(|(value, update)| *value = combine(*value, *update));
            }
        }
        Ok(vec![super::elements::values(&data, data.shape(), values)?])
    }
}

impl Scatter {
    /// Where each slice of the updates goes, and the length of a slice.
    fn places(&self, args: &Args, data: &[usize], indices: &Tensor) -> Result<(Vec<usize>, usize)> {
        if self.kind == Kind::Nd {
            return offsets_nd(data, indices, 0);
        }
        let along = axis(args.int("axis")?, data.len())?;
        if self.kind == Kind::AlongAxis {
            return Ok((offsets_along(data, indices, along)?, 1));
        }
        let inner = count(&data[along + 1..])?;
        let places = within(&indices.to_i64()?, data[along])?;
        let rows = 0..count(&data[..along])?;
        let offsets = rows.flat_map(|row| places.iter().map(move |place| (row * data[along] + place) * inner));
        Ok((offsets.collect(), inner))
    }
}

/// What becomes of an element and its update.
fn combination(args: &Args) -> Result<fn(f64, f64) -> f64> {
    let integer = args.dtype("data")?.is_int();
    Ok(match args.str("mode")? {
        "update" => |_, update| update,
        "add" => |value, update| value + update,
        "sub" => |value, update| value - update,
        "mul" => |value, update| value * update,
        "div" if integer => |value, update| (value / update).trunc(),
        "div" => |value, update| value / update,
        "max" => f64::max,
        "min" => f64::min,
        other => bail!("found the mode {other}, expected update, add, sub, mul, div, max or min"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn ints(shape: &[usize], values: &[i32]) -> Value {
        Tensor::from_vec(shape, values.to_vec()).unwrap().into()
    }

    fn scatter(op: &Scatter, data: Value, indices: Value, updates: Value, mode: &str) -> Result<Vec<i64>> {
        run(op, vec![("data", data), ("indices", indices), ("updates", updates), ("mode", mode.into())])?.to_i64()
    }

    #[test]
    fn slices_are_changed() {
        let data = || ints(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        let updates = || ints(&[2, 3], &[5, 6, 7, 8, 9, 10]);
        assert_eq!(scatter(&SCATTER, data(), ints(&[2], &[1, 0]), updates(), "add").unwrap(), [9, 11, 13, 9, 11, 13]);
        let twice = scatter(&SCATTER, data(), ints(&[2], &[-1, 1]), updates(), "update").unwrap();
        assert_eq!(twice, [1, 2, 3, 8, 9, 10]);
        assert!(scatter(&SCATTER, data(), ints(&[2], &[0, 2]), updates(), "add").is_err());
        assert!(scatter(&SCATTER, data(), ints(&[1], &[0]), updates(), "add").is_err());
        assert!(scatter(&SCATTER, data(), ints(&[2], &[0, 1]), updates(), "other").is_err());
    }

    #[test]
    fn elements_are_changed() {
        let data = || ints(&[2, 2], &[10, 20, 30, 40]);
        let at =
            |mode| scatter(&SCATTER_ALONG_AXIS, data(), ints(&[1, 2], &[1, 0]), ints(&[1, 2], &[3, 50]), mode).unwrap();
        assert_eq!((at("div"), at("max")), (vec![10, 0, 10, 40], vec![10, 50, 30, 40]));
        let nd = |indices, updates| scatter(&SCATTER_ND, data(), indices, updates, "sub");
        assert_eq!(nd(ints(&[1, 2], &[1, 0]), ints(&[1], &[1])).unwrap(), [10, 20, 29, 40]);
        assert_eq!(nd(ints(&[1, 1], &[0]), ints(&[1, 2], &[1, 2])).unwrap(), [9, 18, 30, 40]);
        assert!(nd(ints(&[1, 3], &[0; 3]), ints(&[1], &[1])).is_err());
    }
}
