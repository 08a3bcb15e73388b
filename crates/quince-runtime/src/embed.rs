//! Embeddings: sentences in, one vector each out, in the order they came.
//!
//! ```text
//! texts ─▶ Tokenizer::encode_within ─▶ ids ─▶ batches of like length ─▶ Engine ─▶ [sentences, dimension]
//! ```
//!
//! What a batch costs is its sentences times its longest one, so sentences are sorted by length, divided into calls
//! where calls and padding together cost least, and every call is cut to its longest sentence, within the shapes that
//! the function takes.

mod batches;
mod function;
mod pooling;
mod prompts;
mod shapes;

use std::sync::Arc;

use quince_engine::{Engine, Tensors};
use quince_tensor::{Error, Result, Tensor, bail};

use crate::model::{Call, Watch};
use batches::{Batch, divide};
use function::{Encoder, Gives, TokenInput};
pub use pooling::{Pooling, SentenceModules};
pub use prompts::Prompts;
pub use shapes::BatchShapes;

/// A program that turns sentences into vectors.
pub struct Embedder {
    engine: Arc<Engine>,
    encoder: Encoder,
    padding: u32,
    pooling: Pooling,
}

/// Vectors of sentences, one after the other.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Embeddings {
    /// Elements of a vector; 0 without sentences.
    pub dimension: usize,
    /// `[sentences, dimension]`.
    pub values: Vec<f32>,
}

impl Embeddings {
    /// The vectors.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimension.max(1))
    }

    /// Divides every vector by its length; those of length 0 stay.
    pub fn normalize(&mut self) {
        for row in self.values.chunks_exact_mut(self.dimension.max(1)) {
            let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            if length > 0.0 {
                row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
            }
        }
    }
}

impl Embedder {
    /// Over a program with a function that takes `input_ids` and `attention_mask` int32 [B, L], also `token_type_ids`
    /// if it wants them, and gives one floating-point [B, D], or [B, L, D], of which the mean over the tokens of each
    /// sentence is taken unless [`Embedder::with_pooling`] says otherwise.
    ///
    /// # Errors
    /// When there is no such function.
    pub fn new(engine: Arc<Engine>) -> Result<Embedder> {
        let encoder = Encoder::find(engine.program())?;
        Ok(Embedder { engine, encoder, padding: 0, pooling: Pooling::default() })
    }

    /// The token that fills what is left of a row; 0 if nothing is said. What it is shows only in models that take
    /// their positions from it, such as MPNet's.
    pub fn with_padding(mut self, token: u32) -> Embedder {
        self.padding = token;
        self
    }

    /// How hidden states become one vector, in a package that gives those.
    pub fn with_pooling(mut self, pooling: Pooling) -> Embedder {
        self.pooling = pooling;
        self
    }

    /// Whether the package gives hidden states, so that pooling is done here.
    pub fn pools(&self) -> bool {
        self.encoder.gives == Gives::States
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The name of the function.
    pub fn function(&self) -> &str {
        &self.encoder.name
    }

    /// What a call takes.
    pub fn shapes(&self) -> &BatchShapes {
        &self.encoder.shapes
    }

    /// Number of tokens that have a row in the table of embeddings, if the program tells.
    pub fn vocab_size(&self) -> Option<usize> {
        self.encoder.vocab_size
    }

    /// The vector of each sentence, given as token ids. `progress` hears how many sentences are done.
    ///
    /// # Errors
    /// A sentence without tokens, or with more than the function takes; what the engine reports.
    pub fn embed<S: AsRef<[u32]>>(&self, sentences: &[S], progress: &mut dyn FnMut(usize)) -> Result<Embeddings> {
        let lengths: Vec<usize> = sentences.iter().map(|sentence| sentence.as_ref().len()).collect();
        let longest = self.encoder.shapes.longest();
        if let Some(i) = lengths.iter().position(|&length| length == 0 || length > longest) {
            bail!(
                "sentence {i}: found {} tokens, expected 1 to {longest}", lengths[i];
                hint: "cut long texts, or convert the model for longer ones"
            );
        }
        let Some(batches) = divide(&lengths, &self.encoder.shapes) else {
            bail!("found sentences of up to {longest} tokens, expected shapes that hold them: {}", self.encoder.shapes);
        };
        let (mut out, mut done) = (Embeddings::default(), 0);
        for Batch { sentences: members, shape } in batches {
            let rows: Vec<&[u32]> = members.iter().map(|&i| sentences[i].as_ref()).collect();
            let found = self.call(&rows, shape)?;
            if out.dimension == 0 {
                out.dimension = found.dimension;
                out.values = quince_tensor::zeroed(sentences.len().saturating_mul(found.dimension))?;
            }
            for (i, row) in members.iter().zip(found.rows()) {
                out.values[i * out.dimension..][..out.dimension].copy_from_slice(row);
            }
            done += members.len();
            progress(done);
        }
        Ok(out)
    }

    /// One call of exactly this shape: the vectors of `sentences`, which are at most as many and as long as it says.
    ///
    /// # Errors
    /// A shape that the function does not take, sentences that do not fit in it; what the engine reports.
    pub fn call(&self, sentences: &[&[u32]], [batch, length]: [usize; 2]) -> Result<Embeddings> {
        let encoder = &self.encoder;
        if !encoder.shapes.takes(batch, length) {
            bail!(
                "function `{}`: found {batch} sentences of {length} tokens, expected {}",
                encoder.name,
                encoder.shapes
            );
        }
        let inputs = self.inputs(sentences, [batch, length])?;
        let mut outputs = self.engine.predict(&encoder.name, &inputs, &mut self.engine.new_state()?)?;
        let Some(output) = outputs.remove(&encoder.output) else {
            bail!("function `{}` gave no `{}`", encoder.name, encoder.output);
        };
        self.vectors(sentences, [batch, length], &output)
    }

    /// Shows the values of one sentence to an observer. Where the function takes no call of exactly its length, the
    /// call is filled with the sentence again and again, so that no value is that of padding.
    ///
    /// # Errors
    /// As [`Embedder::embed`]; what the observer or the engine reports.
    pub fn observe(&self, sentence: &[u32], watch: &mut dyn Watch) -> Result<()> {
        let Call { function, inputs, .. } = self.call_for(sentence)?;
        watch.enter(&function);
        self.engine.observe(&function, &inputs, &mut self.engine.new_state()?, watch).map(drop)
    }

    /// The call that computes one sentence, filled with it again and again where no call is of exactly its length.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn call_for(&self, sentence: &[u32]) -> Result<Call> {
        let Some([batch, length]) = self.encoder.shapes.holding(1, sentence.len()).filter(|_| !sentence.is_empty())
        else {
            bail!("found a sentence of {} tokens, expected 1 to {}", sentence.len(), self.encoder.shapes.longest());
        };
        let row: Vec<u32> = sentence.iter().copied().cycle().take(length).collect();
        let inputs = self.inputs(&vec![&row[..]; batch], [batch, length])?;
        // What fills it is text too.
        Ok(Call { function: self.encoder.name.clone(), inputs, length: sentence.len() })
    }

    fn inputs(&self, sentences: &[&[u32]], [batch, length]: [usize; 2]) -> Result<Tensors> {
        if sentences.len() > batch || sentences.iter().any(|sentence| !(1..=length).contains(&sentence.len())) {
            bail!("found sentences that are empty, or more or longer than the call, {batch} x {length}");
        }
        let inputs = self.encoder.inputs.iter().map(|input| {
            let values = match input.what {
                TokenInput::Ids => self.ids(sentences, batch, length)?,
                TokenInput::Mask => mask(sentences, batch, length),
                TokenInput::Types => vec![0; batch * length],
            };
            Ok((input.name.clone(), Tensor::from_vec([batch, length], values)?.cast(input.dtype)?))
        });
        inputs.collect()
    }

    /// The vectors of `sentences` in what the function gave.
    fn vectors(&self, sentences: &[&[u32]], [batch, length]: [usize; 2], output: &Tensor) -> Result<Embeddings> {
        let (dimension, expected) = match (self.encoder.gives, output.shape()) {
            (Gives::Vectors, &[.., dimension]) => (dimension, vec![batch, dimension]),
            (Gives::States, &[.., dimension]) => (dimension, vec![batch, length, dimension]),
            (_, []) => (0, vec![]),
        };
        if output.shape() != expected || dimension == 0 {
            bail!("output `{}`: found {output:?}, expected {batch} embeddings", self.encoder.output);
        }
        let mut values = output.to_f32()?;
        if self.encoder.gives == Gives::Vectors {
            values.truncate(sentences.len() * dimension);
            return Ok(Embeddings { dimension, values });
        }
        let mut pooled = vec![0.0; sentences.len() * dimension];
        let states = values.chunks_exact(length * dimension);
        for ((sentence, states), out) in sentences.iter().zip(states).zip(pooled.chunks_exact_mut(dimension)) {
            self.pooling.pool(&states[..sentence.len() * dimension], out);
        }
        Ok(Embeddings { dimension, values: pooled })
    }

    fn ids(&self, sentences: &[&[u32]], batch: usize, length: usize) -> Result<Vec<i32>> {
        let padding = token(self.padding)?;
        let mut ids = vec![padding; batch * length];
        for (sentence, row) in sentences.iter().zip(ids.chunks_exact_mut(length)) {
            for (&id, slot) in sentence.iter().zip(row) {
                *slot = token(id)?;
            }
        }
        Ok(ids)
    }
}

fn token(id: u32) -> Result<i32> {
    i32::try_from(id).map_err(|_| Error::new(format!("found the token {id}, expected one below 2^31")))
}

/// 1 where a sentence has a token. Rows that hold no sentence see their first token, so that means have something to
/// divide by.
fn mask(sentences: &[&[u32]], batch: usize, length: usize) -> Vec<i32> {
    let mut mask = vec![0; batch * length];
    for (i, row) in mask.chunks_exact_mut(length).enumerate() {
        let seen = sentences.get(i).map_or(1, |sentence| sentence.len());
        row[..seen].fill(1);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_engine::Options;
    use quince_mil::{Builder, DType, Dim, Flexibility, Function, Opset, Program, TensorType, ValueType, Var};

    /// A function that gives [Σ mask · id, Σ mask, 7]: an embedding that shows what it was made of.
    fn embedder(flexibility: &Flexibility, shape: [Dim; 2]) -> Embedder {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ty = ValueType::Tensor(TensorType { dtype: DType::I32, shape: shape.to_vec() });
        let [ids, mask] = ["input_ids", "attention_mask"].map(|name| b.input(name, ty.clone(), flexibility.clone()));
        let mut float =
            |name: &str, var: Var| b.op("cast", name, &[("x", var.into()), ("dtype", "fp32".into())]).unwrap();
        let (ids, mask) = (float("ids", ids), float("mask", mask));
        let seen = b.op("mul", "seen", &[("x", ids.into()), ("y", mask.into())]).unwrap();
        let mut sum = |name: &str, var: Var| {
            let inputs = [("x", var.into()), ("axes", [1].into()), ("keep_dims", true.into())];
            b.op("reduce_sum", name, &inputs).unwrap()
        };
        let (total, count) = (sum("total", seen), sum("count", mask));
        let seven = b.op("fill_like", "seven", &[("ref_tensor", count.into()), ("value", 7f32.into())]).unwrap();
        let inputs = [("values", vec![total, count, seven].into()), ("axis", 1.into()), ("interleave", false.into())];
        let embedding = b.op("concat", "embedding", &inputs).unwrap();
        let program = Program { functions: vec![b.finish(vec![embedding])], ..Program::default() };
        Embedder::new(Arc::new(Engine::load(program, Options { threads: 1, ..Options::default() }).unwrap())).unwrap()
    }

    /// Sentences of many lengths, and their embeddings.
    fn sentences(longest: usize) -> (Vec<Vec<u32>>, Vec<f32>) {
        let sentences: Vec<Vec<u32>> = (0..50).map(|i| vec![i as u32 + 1; 1 + i * 7 % longest]).collect();
        let embedding = |ids: &Vec<u32>| [ids.iter().sum::<u32>() as f32, ids.len() as f32, 7.0];
        let embeddings = sentences.iter().flat_map(embedding).collect();
        (sentences, embeddings)
    }

    #[test]
    fn sentences_come_back_in_order_whatever_shapes_there_are() {
        let range = Flexibility::Range { bounds: vec![(1, Some(8)), (8, Some(40))], default: vec![1, 8] };
        let unknown = Dim::Unknown;
        for embedder in [
            embedder(&range, [unknown, unknown]),
            embedder(&Flexibility::Enumerated(vec![vec![4, 16], vec![1, 40]]), [unknown, unknown]),
            embedder(&Flexibility::Fixed, [Dim::Fixed(3), Dim::Fixed(40)]),
        ] {
            let (sentences, expected) = sentences(40);
            let mut heard = Vec::new();
            let found = embedder.embed(&sentences, &mut |done| heard.push(done)).unwrap();
            assert_eq!((found.dimension, found.values), (3, expected));
            assert!(heard.is_sorted() && heard.last() == Some(&50), "{heard:?}");
            let error = embedder.embed(&[vec![1], vec![2; 41]], &mut |_| {}).unwrap_err().to_string();
            assert!(error.starts_with("sentence 1: found 41 tokens, expected 1 to 40"), "{error}");
        }
    }

    /// A function whose hidden state of a token is its id.
    #[test]
    fn hidden_states_are_pooled_without_padding() {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ty = ValueType::Tensor(TensorType { dtype: DType::I32, shape: vec![Dim::Fixed(2), Dim::Fixed(4)] });
        let [ids, _] = ["input_ids", "attention_mask"].map(|name| b.input(name, ty.clone(), Flexibility::Fixed));
        let ids = b.op("cast", "ids", &[("x", ids.into()), ("dtype", "fp32".into())]).unwrap();
        let states = b.op("expand_dims", "last_hidden_state", &[("x", ids.into()), ("axes", [2].into())]).unwrap();
        let program = Program { functions: vec![b.finish(vec![states])], ..Program::default() };
        let engine = Arc::new(Engine::load(program, Options { threads: 1, ..Options::default() }).unwrap());
        for (pooling, expected) in
            [(Pooling::Mean, [4.0, 8.0, 3.0]), (Pooling::First, [3.0, 9.0, 1.0]), (Pooling::Last, [5.0, 7.0, 4.0])]
        {
            let embedder = Embedder::new(engine.clone()).unwrap().with_padding(9).with_pooling(pooling);
            assert!(embedder.pools());
            let found = embedder.embed(&[vec![3, 5], vec![9, 8, 7], vec![1, 3, 4, 4]], &mut |_| {}).unwrap();
            assert_eq!((found.dimension, &found.values[..]), (1, &expected[..]), "{pooling:?}");
        }
    }

    #[test]
    fn vectors_get_the_length_one() {
        let mut embeddings = Embeddings { dimension: 2, values: vec![3.0, -4.0, 0.0, 0.0] };
        embeddings.normalize();
        assert_eq!(embeddings.values, [0.6, -0.8, 0.0, 0.0]);
    }

    #[test]
    fn a_shape_that_is_not_taken_is_told_with_those_that_are() {
        let embedder = embedder(&Flexibility::Enumerated(vec![vec![4, 16], vec![1, 40]]), [Dim::Unknown; 2]);
        let error = embedder.call(&[&[1]], [2, 16]).unwrap_err().to_string();
        let expected = "function `main`: found 2 sentences of 16 tokens, expected sentences x tokens of 1 x 40, 4 x 16";
        assert_eq!(error, expected);
    }
}
