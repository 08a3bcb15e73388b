//! How fast a model loads, reads a prompt and answers, or embeds; how much memory that takes; and how near it comes to
//! what the machine can do.

mod decoder;
mod encoder;
mod machine;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

pub use decoder::{Bench, BenchOptions, Decode, Prefill, bench};
pub use encoder::{EmbedBench, EmbedBenchOptions, EmbedRate, bench_embed};
pub use machine::{Machine, Peak, Share, peak_resident_bytes};

use crate::metrics::Latencies;

/// The middle and the ends of what repetitions gave.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// Half are below; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// The distribution of times, in seconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Percentiles {
    /// Half are shorter.
    pub median: f64,
    /// Nine of ten are shorter.
    pub p90: f64,
    /// Ninety-nine of a hundred are shorter.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    /// Of some values, in any order; `None` without any.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Spread { median, min, max })
    }
}

impl From<Latencies> for Percentiles {
    fn from(times: Latencies) -> Percentiles {
        let [median, p90, p99, max] = [times.median, times.p90, times.p99, times.max].map(|time| time.as_secs_f64());
        Percentiles { median, p90, p99, max }
    }
}

/// Values by name, in the order they were measured; a map in JSON.
#[derive(Clone, PartialEq, Debug)]
pub struct Named<T>(pub Vec<(String, T)>);

impl<T> Named<T> {
    /// The value that was measured first.
    pub fn first(&self) -> Option<&T> {
        self.0.first().map(|(_, value)| value)
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// The spread of a value over repetitions; `None` if none has it.
fn spread_of<T>(runs: &[T], value: impl Fn(&T) -> Option<f64>) -> Option<Spread> {
    Spread::of(&runs.iter().filter_map(value).collect::<Vec<_>>())
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    fn tokens(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        (0..count).map(|_| (self.next() % vocab_size.max(1) as u64) as u32).collect()
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
