//! `depth_to_space`, `space_to_depth`, `pixel_shuffle` and `pixel_unshuffle`: between channels and pixels.

use super::layout::{View, result, result_shape, steps};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// One of the four: which way, and how channels are counted.
pub struct Pixel {
    name: &'static str,
    doc: &'static str,
    params: &'static [Param],
    since: Opset,
    way: Way,
    order: Order,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToSpace,
    ToDepth,
}

/// Which channels make one block of pixels: those that are C apart, or neighbours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    BlockFirst,
    ChannelFirst,
}

const BLOCK: &[Param] = &[Param::new("x").types(FLOAT), Param::new("block_size").constant()];

/// `depth_to_space`.
pub const DEPTH_TO_SPACE: Pixel = Pixel {
    name: "depth_to_space",
    doc: "Channels as blocks of pixels: x [N, b·b·C, H, W] becomes [N, C, H·b, W·b]; the channels of a block are C apart.",
    params: BLOCK,
    since: Opset::CoreML5,
    way: Way::ToSpace,
    order: Order::BlockFirst,
};

/// `space_to_depth`.
pub const SPACE_TO_DEPTH: Pixel = Pixel {
    name: "space_to_depth",
    doc: "Blocks of pixels as channels: x [N, C, H·b, W·b] becomes [N, b·b·C, H, W]; the channels of a block are C apart.",
    params: BLOCK,
    since: Opset::CoreML5,
    way: Way::ToDepth,
    order: Order::BlockFirst,
};

/// `pixel_shuffle`.
pub const PIXEL_SHUFFLE: Pixel = Pixel {
    name: "pixel_shuffle",
    doc: "Channels as blocks of pixels: x [N, C·f·f, H, W] becomes [N, C, H·f, W·f]; the channels of a block are \
          neighbours.",
    params: &[Param::new("x").types(FLOAT), Param::new("upscale_factor").constant()],
    since: Opset::CoreML5,
    way: Way::ToSpace,
    order: Order::ChannelFirst,
};

/// `pixel_unshuffle`.
pub const PIXEL_UNSHUFFLE: Pixel = Pixel {
    name: "pixel_unshuffle",
    doc: "Blocks of pixels as channels: x [N, C, H·f, W·f] becomes [N, C·f·f, H, W]; the channels of a block are \
          neighbours.",
    params: &[Param::new("x").types(FLOAT), Param::new("downscale_factor").constant()],
    since: Opset::CoreML6,
    way: Way::ToDepth,
    order: Order::ChannelFirst,
};

impl Op for Pixel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        self.params
    }

    fn since(&self) -> Opset {
        self.since
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let [n, c, h, w] = x.shape[..] else { bail!("found x {}, expected [N, C, H, W]", show(&x.shape)) };
        let block = self.block(args)?;
        let times = |dim: Dim, by: usize| dim.fixed().map_or(Dim::Unknown, |n| Dim::Fixed(n.saturating_mul(by)));
        let over = |dim: Dim, by: usize| match dim {
            Dim::Fixed(n) if n % by != 0 => bail!("{by} does not divide a size of x {}", show(&x.shape)),
            Dim::Fixed(n) => Ok(Dim::Fixed(n / by)),
            Dim::Unknown => Ok(Dim::Unknown),
        };
        result(
            x.dtype,
            match self.way {
                Way::ToSpace => vec![n, over(c, block * block)?, times(h, block), times(w, block)],
                Way::ToDepth => vec![n, times(c, block * block), over(h, block)?, over(w, block)?],
            },
        )
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, b) = (args.tensor("x")?, self.block(args)?);
        // Axes n, c, h, w of the smaller image and i, j within a block, each where its step lies.
        let small = if self.way == Way::ToSpace { x.shape() } else { &shape };
        let (h, w) = (small[2], small[3]);
        let c = if self.way == Way::ToSpace { shape[1] } else { x.shape()[1] };
        let order = |c, i, j| if self.order == Order::BlockFirst { [i, j, c] } else { [c, i, j] };
        let (channel, row, column) = ((c, 1), (b, 2), (b, 3));
        let depth = order(channel, row, column);
        let sizes: Vec<usize> = [small[0]].into_iter().chain(depth.map(|axis| axis.0)).chain([h, w]).collect();
        let deep = steps(&sizes);
        let place = |axis: usize| depth.iter().position(|&(_, id)| id == axis).map_or(0, |i| i + 1);
        let wide = steps(&[small[0], c, h, b, w, b]);
        let axes = match self.way {
            Way::ToSpace => {
                let step = |axis| deep[place(axis)];
                vec![(small[0], deep[0]), (c, step(1)), (h, deep[4]), (b, step(2)), (w, deep[5]), (b, step(3))]
            }
            Way::ToDepth => {
                let step = |axis: usize| [wide[1], wide[3], wide[5]][axis - 1];
                let [p, q, r] = depth.map(|(size, axis)| (size, step(axis)));
                vec![(small[0], wide[0]), p, q, r, (h, wide[2]), (w, wide[4])]
            }
        };
        Ok(vec![View { first: 0, axes }.take_as(&x, &shape)?])
    }
}

impl Pixel {
    /// The length of a side of a block.
    fn block(&self, args: &Args) -> Result<usize> {
        let name = self.params[1].name;
        match usize::try_from(args.int(name)?) {
            Ok(block @ 1..=65536) => Ok(block),
            _ => bail!("found {name} {}, expected 1 or more", args.int(name)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn values(op: &Pixel, x: crate::Value, block: i32) -> Result<Tensor> {
        run(op, vec![("x", x), (op.params[1].name, block.into())])
    }

    /// Expected values: TensorFlow's `depth_to_space` and PyTorch's `PixelShuffle` on 0, 1, ... in [1, 8, 1, 1].
    #[test]
    fn channels_become_pixels() {
        let y = values(&DEPTH_TO_SPACE, iota(&[1, 8, 1, 1]), 2).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 2, 2, 2][..], vec![0., 2., 4., 6., 1., 3., 5., 7.]));
        let y = values(&PIXEL_SHUFFLE, iota(&[1, 8, 1, 1]), 2).unwrap();
        assert_eq!(y.to_f32().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
        let y = values(&PIXEL_SHUFFLE, iota(&[1, 4, 1, 2]), 2).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 1, 2, 4][..], vec![0., 2., 1., 3., 4., 6., 5., 7.]));
    }

    #[test]
    fn pixels_become_the_channels_they_were() {
        let x: Vec<f32> = (0..96).map(|i| i as f32).collect();
        for (there, back) in [(&DEPTH_TO_SPACE, &SPACE_TO_DEPTH), (&PIXEL_SHUFFLE, &PIXEL_UNSHUFFLE)] {
            let y = values(there, iota(&[2, 8, 2, 3]), 2).unwrap();
            let z = values(back, y.into(), 2).unwrap();
            assert_eq!((z.shape(), z.to_f32().unwrap()), (&[2, 8, 2, 3][..], x.clone()));
        }
        assert!(values(&PIXEL_SHUFFLE, iota(&[1, 6, 1, 1]), 2).is_err());
        assert!(values(&SPACE_TO_DEPTH, iota(&[1, 1, 3, 2]), 2).is_err());
        assert!(values(&SPACE_TO_DEPTH, iota(&[1, 1, 2, 2]), 0).is_err());
    }
}
