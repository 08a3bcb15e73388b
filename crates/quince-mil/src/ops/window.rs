//! Where the windows of convolutions and pools lie along the spatial axes: padding, strides, dilations.

use super::layout::MOST_ELEMENTS;
use crate::{Args, Dim, Result, bail};

/// What a window is along one axis, before the size of the axis is known.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The number of elements that a window takes.
    pub kernel: usize,
    /// The distance between windows.
    pub stride: usize,
    /// The distance between the elements of a window.
    pub dilation: usize,
    /// What is added to the axis.
    pub padding: Padding,
}

/// What is added to an axis before the windows are laid on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Padding {
    /// Nothing.
    Valid,
    /// As much as ⌈size / stride⌉ windows need, the odd element at the end.
    Same,
    /// The same, the odd element at the beginning.
    SameLower,
    /// This much before and after.
    Custom(usize, usize),
}

/// Whether the last window may reach beyond the padded axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// Only whole windows count.
    Down,
    /// A window that begins inside counts, as PyTorch's `ceil_mode` has it.
    Up,
}

/// Windows along an axis of known size.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// The size of the axis.
    pub size: usize,
    /// What a window is.
    pub window: Window,
    /// Padding before the first element.
    pub before: usize,
    /// Padding after the last element.
    pub after: usize,
    /// The number of windows.
    pub count: usize,
}

/// The windows of an operation with these kernel sizes, one per spatial axis.
pub fn windows(args: &Args, kernel: &[usize]) -> Result<Vec<Window>> {
    let rank = kernel.len();
    let strides = sizes(args, "strides", rank, 1)?;
    let dilations = sizes(args, "dilations", rank, 1)?;
    let pad = if args.str("pad_type")? == "custom" { sizes(args, "pad", 2 * rank, 0)? } else { vec![0; 2 * rank] };
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        let padding = match args.str("pad_type")? {
            "valid" => Padding::Valid,
            "same" => Padding::Same,
            "same_lower" => Padding::SameLower,
            "custom" => Padding::Custom(pad[2 * i], pad[2 * i + 1]),
            other => bail!("found pad_type {other}, expected valid, same, same_lower or custom"),
        };
        let (kernel, stride, dilation) = (kernel[i], strides[i], dilations[i]);
        if kernel == 0 || stride == 0 || dilation == 0 {
            bail!("found a kernel of {kernel}, stride {stride}, dilation {dilation}, expected 1 or more of each");
        }
        out.push(Window { kernel, stride, dilation, padding });
    }
    Ok(out)
}

/// Sizes of a parameter: as many as given, or all the default; far from overflow.
pub fn sizes(args: &Args, name: &str, count: usize, default: usize) -> Result<Vec<usize>> {
    let Some(values) = args.opt_ints(name)? else { return Ok(vec![default; count]) };
    let sizes: Vec<usize> = values.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
    if sizes.len() != count || values.len() != count || sizes.iter().any(|&n| n > MOST_ELEMENTS) {
        bail!("found {name} {values:?}, expected {count} sizes");
    }
    Ok(sizes)
}

impl Window {
    /// From the first element of a window to its last, counting both.
    pub fn reach(&self) -> usize {
        (self.kernel - 1).saturating_mul(self.dilation).saturating_add(1)
    }

    /// The windows on an axis of this size.
    pub fn on(&self, size: usize, rounding: Rounding) -> Result<Placed> {
        let reach = self.reach();
        let (before, after) = match self.padding {
            Padding::Valid => (0, 0),
            Padding::Custom(before, after) => (before, after),
            Padding::Same | Padding::SameLower => {
                let needed = size.div_ceil(self.stride).saturating_sub(1).saturating_mul(self.stride);
                let total = needed.saturating_add(reach).saturating_sub(size);
                let half = total / 2;
                if self.padding == Padding::Same { (half, total - half) } else { (total - half, half) }
            }
        };
        let padded = size.saturating_add(before).saturating_add(after);
        let Some(room) = padded.checked_sub(reach) else {
            bail!("a window of {reach} is longer than an axis of {size} with padding of {before} and {after}");
        };
        let mut count = room / self.stride + 1;
        if rounding == Rounding::Up {
            count = room.div_ceil(self.stride) + 1;
            // The last window must begin inside of the axis or of the padding before it.
            if (count - 1).saturating_mul(self.stride) >= size.saturating_add(before) && before + after > 0 {
                count -= 1;
            }
        }
        if padded > MOST_ELEMENTS {
            bail!("an axis of {size} with padding of {before} and {after} is too large");
        }
        Ok(Placed { size, window: *self, before, after, count })
    }
}

/// The number of windows along each axis, as far as its size is known.
pub fn counts(axes: &[Dim], windows: &[Window], rounding: Rounding) -> Result<Vec<Dim>> {
    let mut out = Vec::with_capacity(axes.len());
    for (axis, window) in axes.iter().zip(windows) {
        out.push(match axis {
            Dim::Fixed(size) => Dim::Fixed(window.on(*size, rounding)?.count),
            Dim::Unknown => Dim::Unknown,
        });
    }
    Ok(out)
}

/// Windows on up to three axes of known size, as three: those that are missing come first and have size 1.
pub fn placed(axes: &[usize], windows: &[Window], rounding: Rounding) -> Result<[Placed; 3]> {
    let one = Window { kernel: 1, stride: 1, dilation: 1, padding: Padding::Valid };
    let mut out = [Placed { size: 1, window: one, before: 0, after: 0, count: 1 }; 3];
    let Some(first) = 3usize.checked_sub(axes.len()).filter(|_| axes.len() == windows.len()) else {
        bail!("found {} spatial axes, expected one to three", axes.len());
    };
    for (out, (size, window)) in out[first..].iter_mut().zip(axes.iter().zip(windows)) {
        *out = window.on(*size, rounding)?;
    }
    Ok(out)
}

impl Placed {
    /// The windows whose element `k` lies on the axis, not in the padding.
    pub fn covering(&self, k: usize) -> std::ops::Range<usize> {
        let (offset, stride) = (k.saturating_mul(self.window.dilation), self.window.stride);
        let first = self.before.saturating_sub(offset).div_ceil(stride);
        let end = (self.size + self.before).saturating_sub(offset).div_ceil(stride);
        first..end.min(self.count).max(first)
    }

    /// The elements of the axis in window `i`, whose elements are next to each other.
    pub fn inside(&self, i: usize) -> std::ops::Range<usize> {
        let begin = i * self.window.stride;
        let end = (begin + self.window.kernel).saturating_sub(self.before).min(self.size);
        begin.saturating_sub(self.before).min(end)..end
    }

    /// How many elements window `i` has, those in the padding too.
    pub fn padded(&self, i: usize) -> usize {
        let begin = i * self.window.stride;
        self.window.kernel.min((self.size + self.before + self.after).saturating_sub(begin))
    }

    /// Where element `k` of window `i` lies, which must be one that [`Placed::covering`] gives.
    pub fn at(&self, i: usize, k: usize) -> usize {
        i * self.window.stride + k * self.window.dilation - self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(size: usize, kernel: usize, stride: usize, padding: Padding, rounding: Rounding) -> (usize, usize, usize) {
        let placed = Window { kernel, stride, dilation: 1, padding }.on(size, rounding).unwrap();
        (placed.before, placed.after, placed.count)
    }

    #[test]
    fn padding_is_laid_as_its_name_says() {
        assert_eq!(place(7, 3, 2, Padding::Valid, Rounding::Down), (0, 0, 3));
        assert_eq!(place(6, 3, 2, Padding::Same, Rounding::Down), (0, 1, 3));
        assert_eq!(place(6, 3, 2, Padding::SameLower, Rounding::Down), (1, 0, 3));
        assert_eq!(place(5, 1, 3, Padding::Same, Rounding::Down), (0, 0, 2));
        assert_eq!(place(5, 3, 1, Padding::Custom(2, 1), Rounding::Down), (2, 1, 6));
        assert_eq!(place(6, 3, 2, Padding::Valid, Rounding::Up), (0, 0, 3));
        // The fourth window would begin in the padding after the axis.
        assert_eq!(place(5, 2, 2, Padding::Custom(1, 1), Rounding::Up), (1, 1, 3));
        let long = Window { kernel: usize::MAX, stride: 1, dilation: 9, padding: Padding::Same };
        assert!(long.on(3, Rounding::Down).is_err());
        assert!(Window { kernel: 4, padding: Padding::Valid, ..long }.on(3, Rounding::Down).is_err());
    }

    #[test]
    fn elements_in_the_padding_are_left_out() {
        let window = Window { kernel: 3, stride: 2, dilation: 2, padding: Padding::Custom(3, 1) };
        let placed = window.on(5, Rounding::Down).unwrap();
        assert_eq!(placed.count, 3);
        let covered: Vec<Vec<usize>> = (0..3).map(|k| placed.covering(k).map(|i| placed.at(i, k)).collect()).collect();
        // Windows begin at -3, -1 and 1; their elements are 2 apart.
        assert_eq!(covered, [vec![1], vec![1, 3], vec![1, 3]]);
    }
}
