//! The encoder against golden vectors made by `golden/minilm.py`, and its promises.
#![allow(clippy::unwrap_used)]

use super::minilm::{MAX_TOKENS, MiniLm};
use super::{Embed, model_file};
use crate::Disposition;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    model_sha256: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    tokens: Vec<u32>,
    vector: Vec<f64>,
}

/// The model's folder, of which every file is there; these tests never pass without it.
fn folder() -> PathBuf {
    let files = ["model.safetensors", "tokenizer.json", "config.json"];
    for name in files {
        model_file(&format!("encoder/{name}"));
    }
    model_file("encoder/config.json").parent().unwrap().to_owned()
}

fn encoder() -> MiniLm {
    MiniLm::load(&folder()).unwrap()
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../golden/minilm.json")).unwrap()
}

fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|x| x.to_bits()).collect()
}

/// Texts of exactly `tokens` tokens, each word a single one.
fn texts(count: usize, tokens: usize) -> Vec<String> {
    const WORDS: [&str; 7] = ["space", "love", "war", "a", "film", "dark", "young"];
    (0..count)
        .map(|text| {
            let word = |i: usize| WORDS[(i * i + text * (i + 3)) % WORDS.len()];
            (2..tokens).map(word).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[test]
fn vectors_agree_with_the_independent_program() {
    let golden = golden();
    let mut encoder = encoder();
    assert_eq!(encoder.id(), format!("{}:mean:256", golden.model_sha256));
    assert!(golden.cases.len() >= 8, "the golden file has lost cases");
    let texts: Vec<String> = golden.cases.iter().map(|case| case.text.clone()).collect();
    let vectors = encoder.embed(&texts).unwrap();
    assert_eq!(vectors.len(), texts.len());
    let mut worst = 0.0_f64;
    for (case, vector) in golden.cases.iter().zip(&vectors) {
        assert_eq!(encoder.tokens(&case.text).unwrap(), case.tokens, "tokens of {:?}", case.text);
        assert_eq!((vector.len(), case.vector.len()), (encoder.width(), encoder.width()));
        for (&ours, theirs) in vector.iter().zip(&case.vector) {
            worst = worst.max((f64::from(ours) - theirs).abs());
        }
        let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-6, "norm {norm} of {:?}", case.text);
    }
    println!("greatest difference from the golden vectors: {worst:e}");
    assert!(worst < 1e-5, "a number differs by {worst:e} from the golden vectors");
    assert_eq!(golden.cases.iter().map(|case| case.tokens.len()).max(), Some(MAX_TOKENS), "no case is cut");
}

#[test]
fn a_vector_does_not_depend_on_the_other_texts_of_the_call() {
    let mut encoder = encoder();
    // Batches of one length, which fill passes with every count of rows up to the limit and beyond.
    for length in [2, 3, 5, 8, 16, 17, 31, 64, 85, 100, 128, 200, 256] {
        let texts = texts(if length < 64 { 140 / length + 2 } else { 3 }, length);
        let together = encoder.embed(&texts).unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(encoder.tokens(text).unwrap().len(), length);
            let alone = encoder.embed(std::slice::from_ref(text)).unwrap();
            assert_eq!(bits(vector), bits(&alone[0]), "{length} tokens");
        }
    }
    // One text behind others that shift its rows to every place.
    let text = "a quiet film on love, war and a lighthouse".to_owned();
    let alone = bits(&encoder.embed(std::slice::from_ref(&text)).unwrap()[0]);
    for before in 2..120 {
        let batch = [texts(1, before).remove(0), text.clone(), texts(1, before % 7 + 2).remove(0)];
        let together = encoder.embed(&batch).unwrap();
        assert_eq!(bits(&together[1]), alone, "behind {before} rows");
    }
}

#[test]
fn no_texts_give_no_vectors() {
    assert!(encoder().embed(&[]).unwrap().is_empty());
}

#[test]
fn a_missing_file_names_the_cure() {
    let empty = tempfile::tempdir().unwrap();
    let error = MiniLm::load(empty.path()).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(error.to_string().contains("config.json"), "{error}");
    assert!(error.hint.contains("make models"), "{error}");
}

#[test]
fn a_wrong_file_is_refused() {
    let folder = folder();
    let copy = |change: &dyn Fn(&str, Vec<u8>) -> Vec<u8>| {
        let other = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            let file = change(name, std::fs::read(folder.join(name)).unwrap());
            std::fs::write(other.path().join(name), file).unwrap();
        }
        MiniLm::load(other.path()).unwrap_err()
    };
    let config = |from: &'static str, to: &'static str| {
        copy(&move |name, file| match name {
            "config.json" => {
                let text = String::from_utf8(file).unwrap();
                assert!(text.contains(from), "{from} isn't in the config");
                text.replace(from, to).into_bytes()
            }
            _ => file,
        })
    };
    let tanh = config("\"gelu\"", "\"gelu_new\"");
    assert!(tanh.to_string().contains("gelu_new"), "{tanh}");
    let heads = config("\"num_attention_heads\": 12", "\"num_attention_heads\": 7");
    assert!(heads.to_string().contains("7 heads"), "{heads}");
    let layers = config("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7");
    assert!(layers.to_string().contains("encoder.layer.6"), "{layers}");
    let words = config("30522", "30000");
    assert!(words.to_string().contains("30522"), "{words}");
    let short = config("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 128");
    assert!(short.to_string().contains("128 tokens"), "{short}");
    let cut = copy(&|name, file| match name {
        "model.safetensors" => file[..file.len() / 2].to_vec(),
        _ => file,
    });
    assert!(cut.to_string().contains("model.safetensors"), "{cut}");
    let garbled = copy(&|name, file| match name {
        "tokenizer.json" => b"{}".to_vec(),
        _ => file,
    });
    assert!(garbled.to_string().contains("tokenizer.json"), "{garbled}");
}
