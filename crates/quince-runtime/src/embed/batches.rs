//! Which sentences are computed together: those of like length, so that little padding is.

use super::shapes::BatchShapes;

/// Sentences that are computed in one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Batch {
    /// Their indices.
    pub sentences: Vec<usize>,
    /// Sentences and tokens of the call.
    pub shape: [usize; 2],
}

/// The most sentences of a call. More are not faster: the engine's products are as dense with some hundred tokens.
const LARGEST: usize = 64;
/// The most tokens of a call of several sentences, so that memory for results between layers stays small.
const MOST_TOKENS: usize = 16 << 10;
/// What a call costs besides its tokens, in tokens: weights are read, threads meet, a shape is planned.
const CALL: usize = 32;

/// Divides sentences of these lengths so that calls and padding together cost least. `None` if one is longer than
/// what the shapes take.
///
/// Sorted by length, each batch is a run; the cheapest division into runs is found by dynamic programming over where
/// the last run begins.
pub(super) fn divide(lengths: &[usize], shapes: &BatchShapes) -> Option<Vec<Batch>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| lengths[i]);
    let largest = shapes.largest_batch().min(LARGEST);
    // By number of sentences from the shortest: the least cost, and how many are in the last batch.
    let mut best: Vec<(usize, usize, [usize; 2])> = vec![(0, 0, [0, 0])];
    for end in 1..=order.len() {
        let longest = lengths[order[end - 1]];
        let choices = (1..=largest.min(end)).filter_map(|count| {
            let shape @ [batch, length] = shapes.holding(count, longest)?;
            let tokens = batch.checked_mul(length)?;
            (count == 1 || tokens <= MOST_TOKENS).then(|| (best[end - count].0 + tokens + CALL, count, shape))
        });
        // Of equal ones the largest batch, so that there are few shapes.
        best.push(choices.min_by_key(|&(cost, count, _)| (cost, usize::MAX - count))?);
    }
    let (mut batches, mut end) = (Vec::new(), order.len());
    while end > 0 {
        let (_, count, shape) = best[end];
        batches.push(Batch { sentences: order[end - count..end].to_vec(), shape });
        end -= count;
    }
    Some(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: BatchShapes = BatchShapes::Range { batch: (1, 64), length: (8, 512) };

    /// Every sentence once, each in a call that it fits.
    fn check(lengths: &[usize], shapes: &BatchShapes) -> Vec<Batch> {
        let batches = divide(lengths, shapes).unwrap();
        let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.sentences.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        for Batch { sentences, shape: [batch, length] } in &batches {
            assert!(sentences.len() <= *batch && sentences.iter().all(|&i| lengths[i] <= *length));
            assert!(shapes.takes(*batch, *length), "{batch} x {length}");
        }
        batches
    }

    #[test]
    fn like_lengths_go_together() {
        let lengths: Vec<usize> = (0..200).map(|i| if i % 4 == 0 { 200 + i % 3 } else { 9 + i % 7 }).collect();
        let batches = check(&lengths, &RANGE);
        let tokens: usize = batches.iter().map(|batch| batch.shape[0] * batch.shape[1]).sum();
        let rounded: usize = lengths.iter().map(|length| length.next_multiple_of(8)).sum();
        assert!(tokens <= rounded + 150 && batches.len() <= 6, "{tokens} tokens for {rounded}: {batches:?}");
    }

    #[test]
    fn a_few_short_ones_are_not_worth_a_call() {
        assert_eq!(check(&[8, 16, 8], &RANGE).len(), 1);
        assert_eq!(check(&[8, 400], &RANGE).len(), 2);
    }

    #[test]
    fn listed_shapes_are_filled_and_padded() {
        let shapes = BatchShapes::Listed(vec![[1, 64], [4, 16]]);
        let batches = check(&[10, 11, 12, 13, 14, 60], &shapes);
        assert_eq!(batches.iter().map(|batch| batch.shape).collect::<Vec<_>>(), [[1, 64], [4, 16], [1, 64]]);
        assert_eq!(divide(&[65], &shapes), None);
        assert_eq!(divide(&[], &shapes), Some(vec![]));
    }

    #[test]
    fn many_long_ones_are_several_calls() {
        let batches = check(&[512; 64], &RANGE);
        assert!(batches.iter().all(|batch| batch.shape[0] * batch.shape[1] <= MOST_TOKENS));
    }
}
