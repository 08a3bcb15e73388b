//! `non_maximum_suppression`: the best of boxes that overlap.

use super::elements::room;
use super::layout::{count, result};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct NonMaximumSuppression;

impl Op for NonMaximumSuppression {
    fn name(&self) -> &'static str {
        "non_maximum_suppression"
    }

    fn doc(&self) -> &'static str {
        "Of boxes, each the x and y of its centre, width and height, those without a better one (by its best score; with \
         `per_class_suppression` of its class) that it shares more than `iou_threshold` of their union with, the best \
         first, at most `max_boxes`, at least one. Up to iOS 16 boxes: [n, B, 4], scores: [n, B, K], boxes of scores not \
         above `score_threshold` do not count; results: boxes [n, max_boxes, 4], scores [n, max_boxes, K], indices [n, \
         max_boxes], number of boxes [n]. From iOS 17 boxes: [n, 4, B], scores: [n, K, B], without a threshold of scores \
         and without the last result. The rest of the results is 0, of indices -1."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("boxes").types(FLOAT),
                Param::new("scores").types(FLOAT),
                Param::new("iou_threshold").constant().types(FLOAT),
                Param::new("score_threshold").constant().optional().types(FLOAT),
                Param::new("max_boxes").constant(),
                Param::new("per_class_suppression").constant().or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (boxes, scores) = (args.ty("boxes")?, args.ty("scores")?);
        let early = args.has("score_threshold");
        let (&[n, first, second], &[m, third, fourth]) = (&boxes.shape[..], &scores.shape[..]) else {
            bail!("found boxes {} and scores {}, expected three axes each", show(&boxes.shape), show(&scores.shape));
        };
        let (four, number, classes, scored) =
            if early { (second, first, fourth, third) } else { (first, second, third, fourth) };
        if !four.fits(Dim::Fixed(4)) {
            bail!("found boxes {}, expected four numbers for each", show(&boxes.shape));
        }
        let n = merge(n, m)?;
        merge(number, scored)?;
        args.bool("per_class_suppression")?;
        args.float("iou_threshold")?;
        let most = Dim::Fixed(most(args)?);
        let ordered = |inner: Dim| if early { vec![n, most, inner] } else { vec![n, inner, most] };
        let mut types = result(boxes.dtype, ordered(Dim::Fixed(4)))?;
        types.append(&mut result(scores.dtype, ordered(classes))?);
        types.append(&mut result(DType::I32, vec![n, most])?);
        if early {
            types.append(&mut result(DType::I32, vec![n])?);
        }
        Ok(types)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let early = args.has("score_threshold");
        let (boxes, scores) = (args.tensor("boxes")?, args.tensor("scores")?);
        let (images, most) = (boxes.shape()[0], most(args)?);
        let (all_boxes, all_scores) = (Rows::new(&boxes, early)?, Rows::new(&scores, early)?);
        if images > 0 && all_scores.width == 0 {
            bail!("found scores {scores:?}, expected classes");
        }
        let (mut indices, mut numbers) = (room(count(&[images, most])?)?, room(images)?);
        for image in 0..images {
            let kept = selected(args, &all_boxes, &all_scores, image, most)?;
            numbers.push(kept.len() as i32);
            indices.extend(kept.iter().map(|&i| i as i32));
            indices.resize((image + 1) * most, -1);
        }
        let mut results = vec![all_boxes.picked(&indices, most, early)?, all_scores.picked(&indices, most, early)?];
        results.push(Tensor::from_vec([images, most], indices)?);
        if early {
            results.push(Tensor::vector(numbers));
        }
        Ok(results)
    }
}

fn most(args: &Args) -> Result<usize> {
    match usize::try_from(args.int("max_boxes")?) {
        Ok(most) if most > 0 => Ok(most),
        _ => bail!("found max_boxes {}, expected one or more", args.int("max_boxes")?),
    }
}

/// The numbers of each box of each image, next to each other.
struct Rows {
    dtype: DType,
    images: usize,
    boxes: usize,
    width: usize,
    values: Vec<f64>,
}

impl Rows {
    fn new(x: &Tensor, early: bool) -> Result<Rows> {
        let &[images, first, second] = x.shape() else { bail!("found {x:?}, expected three axes") };
        let (boxes, width) = if early { (first, second) } else { (second, first) };
        let mut rows = Rows { dtype: x.dtype(), images, boxes, width, values: x.to_f64()? };
        if !early {
            rows.values = rows.turned(&rows.values, width, boxes);
        }
        Ok(rows)
    }

    /// Each of the images, rows by columns, transposed.
    fn turned(&self, values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        let plane = rows * columns;
        let of = |image: usize, i: usize| values[image * plane + i % rows * columns + i / rows];
        (0..self.images).flat_map(|image| (0..plane).map(move |i| of(image, i))).collect()
    }

    fn row(&self, image: usize, i: usize) -> &[f64] {
        &self.values[(image * self.boxes + i) * self.width..][..self.width]
    }

    /// The rows of these indices, zeros where there is none.
    fn picked(&self, indices: &[i32], most: usize, early: bool) -> Result<Tensor> {
        let mut out = room(count(&[self.images, most, self.width])?)?;
        for (at, &index) in indices.iter().enumerate() {
            match usize::try_from(index) {
                Ok(index) => out.extend_from_slice(self.row(at / most, index)),
                Err(_) => out.resize(out.len() + self.width, 0.0),
            }
        }
        if early {
            return Tensor::from_f64(self.dtype, [self.images, most, self.width], out);
        }
        let turned = self.turned(&out, most, self.width);
        Tensor::from_f64(self.dtype, [self.images, self.width, most], turned)
    }
}

/// The boxes of an image that are kept, the best first.
fn selected(args: &Args, boxes: &Rows, scores: &Rows, image: usize, most: usize) -> Result<Vec<usize>> {
    let (limit, by_class) = (args.float("iou_threshold")?, args.bool("per_class_suppression")?);
    let least = if args.has("score_threshold") { args.float("score_threshold")? } else { f64::NEG_INFINITY };
    let best: Vec<(usize, f64)> = (0..scores.boxes)
        .map(|i| {
            let of = scores.row(image, i).iter().copied().enumerate();
            of.fold((0, f64::NEG_INFINITY), |best, found| if found.1 > best.1 { found } else { best })
        })
        .collect();
    let mut order: Vec<usize> = (0..best.len()).collect();
    order.sort_by(|&a, &b| best[b].1.total_cmp(&best[a].1));
    let mut kept: Vec<usize> = Vec::new();
    for &i in order.iter().filter(|&&i| best[i].1 > least) {
        let beaten = |j: &&usize| {
            (!by_class || best[i].0 == best[**j].0) && overlap(boxes.row(image, i), boxes.row(image, **j)) > limit
        };
        if kept.len() < most && !kept.iter().any(|j| beaten(&j)) {
            kept.push(i);
        }
    }
    if kept.is_empty() {
        kept.extend(order.first());
    }
    Ok(kept)
}

/// The share of what two boxes cover together that both cover.
fn overlap(a: &[f64], b: &[f64]) -> f64 {
    let common = |axis: usize| {
        let end = |x: &[f64], side: f64| x[axis] + side * x[axis + 2];
        (end(a, 0.5).min(end(b, 0.5)) - end(a, -0.5).max(end(b, -0.5))).max(0.0)
    };
    let both = common(0) * common(1);
    let union = a[2] * a[3] + b[2] * b[3] - both;
    if union > 0.0 { both / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    const BOXES: [f32; 16] = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0];

    fn early(scores: Value, classes: bool, limit: f32) -> Vec<Tensor> {
        let values: Vec<(&str, Value)> = vec![
            ("boxes", f32s(&[1, 4, 4], &BOXES)),
            ("scores", scores),
            ("iou_threshold", limit.into()),
            ("score_threshold", 0.4f32.into()),
            ("max_boxes", 2.into()),
            ("per_class_suppression", classes.into()),
        ];
        run_all(&NonMaximumSuppression, &args(&NonMaximumSuppression, values)).unwrap()
    }

    /// The first values are those of coremltools' test, which Core ML gives.
    #[test]
    fn the_best_boxes_are_kept() {
        let scores = || f32s(&[1, 4, 1], &[-3.5, 9.4, 2.3, 0.7]);
        let [boxes, kept, indices, number] = &early(scores(), true, 0.2)[..] else { panic!("four results") };
        assert_eq!(boxes.to_f32().unwrap(), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!((kept.to_f32().unwrap(), kept.shape()), (vec![9.4, 2.3], &[1, 2, 1][..]));
        assert_eq!((indices.to_i64().unwrap(), number.to_i64().unwrap()), (vec![1, 2], vec![2]));
        // The boxes at 1 and 2 share a quarter of one of four and one: 0.25 / 4.75.
        let strict = early(scores(), false, 0.05);
        assert_eq!((strict[2].to_i64().unwrap(), strict[3].to_i64().unwrap()), (vec![1, 3], vec![2]));
        let classes = f32s(&[1, 4, 2], &[0.0, 0.0, 9.4, 0.0, 0.0, 2.3, 0.0, 0.7]);
        assert_eq!(early(classes, true, 0.0)[2].to_i64().unwrap(), [1, 2]);
        let none = early(f32s(&[1, 4, 1], &[0.1, 0.3, 0.2, 0.0]), false, 0.5);
        assert_eq!((none[2].to_i64().unwrap(), none[3].to_i64().unwrap()), (vec![1, -1], vec![1]));
    }

    #[test]
    fn from_ios_17_boxes_are_columns() {
        let columns: Vec<f32> = (0..16).map(|i| BOXES[i % 4 * 4 + i / 4]).collect();
        let values: Vec<(&str, Value)> = vec![
            ("boxes", f32s(&[1, 4, 4], &columns)),
            ("scores", f32s(&[1, 1, 4], &[-3.5, 9.4, 2.3, 0.7])),
            ("iou_threshold", 0.2f32.into()),
            ("max_boxes", 3.into()),
        ];
        let found = run_all(&NonMaximumSuppression, &args(&NonMaximumSuppression, values)).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].to_f32().unwrap(), [1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]);
        // Two boxes of three share a third with the second; the one without a size shares nothing.
        assert_eq!(found[2].to_i64().unwrap(), [1, 2, 0]);
    }
}
