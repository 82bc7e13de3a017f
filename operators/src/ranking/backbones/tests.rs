//! The backbones at the paper's sizes: whether every variable learns, what a seed decides, what is refused.
#![allow(clippy::unwrap_used)]

use super::golden::drawn;
use super::*;
use crate::ranking::adam::{self, Adam};
use crate::ranking::layers::Masks;
use crate::ranking::loss::cross_entropy;
use crate::ranking::random::Stream;
use crate::ranking::tables::Rows;
use crate::ranking::variables::values;
use candle_core::Device;

/// A batch for the paper's sizes: 32 samples, half of the entries there.
fn batch(settings: &Settings, rows: Rows, tables: Tables) -> Inputs {
    let mut stream = Stream::new(9, "batch");
    let mut ids = |shape: &[usize], rows: usize| {
        let count: usize = shape.iter().product();
        let ids: Vec<u32> = (0..count)
            .map(|_| (stream.bits() % (2 * rows as u64)).saturating_sub(rows as u64) as u32)
            .collect();
        Tensor::from_vec(ids, shape, &Device::Cpu).unwrap()
    };
    let (b, t, c) = (32, 20, 3);
    Inputs {
        ids: Ids {
            user: ids(&[b], rows.user),
            item: ids(&[b], rows.item),
            creator: ids(&[b], rows.creator),
            categories: ids(&[b, c], rows.category),
            history_items: ids(&[b, t], rows.item),
            history_creators: ids(&[b, t], rows.creator),
            history_categories: ids(&[b, t, c], rows.category),
        },
        tables,
        text: Some([drawn(1, &[b, settings.d]), drawn(2, &[b, settings.d])]),
        scalars: Some(drawn(3, &[b, settings.scalars])),
        vector: Some(drawn(4, &[b, settings.d])),
    }
}

fn paper(kind: Kind, seed: u64) -> (Variables, Box<dyn Backbone>, Inputs) {
    let settings = Settings { text: true, scalars: 10, vector: true, ..Settings::default() };
    let rows = Rows { user: 40, item: 50, creator: 20, category: 12 };
    let mut variables = Variables::new(seed);
    let tables = rows.create(settings.d, kind.init(), &mut variables).unwrap();
    let backbone = kind.build(&settings, &mut variables).unwrap();
    let inputs = batch(&settings, rows, tables);
    (variables, backbone, inputs)
}

#[test]
fn every_variable_of_the_papers_sizes_gets_a_gradient() {
    for kind in Kind::ALL {
        let (variables, backbone, inputs) = paper(kind, 1);
        assert_eq!(backbone.kind(), kind);
        let mut phase = Phase::Training(Masks::new(1, 1));
        let logits = backbone.logits(&inputs, &mut phase).unwrap();
        assert_eq!(logits.dims(), [32]);
        let labels = Tensor::from_vec((0..32).map(|i| (i % 2) as f32).collect(), 32, &Device::Cpu).unwrap();
        let gradients = cross_entropy(&logits, &labels).unwrap().backward().unwrap();
        for variable in variables.trained() {
            let gradient = gradients.get(&variable.var);
            let largest = gradient.map_or(0.0, |g| {
                values(g)
                    .unwrap()
                    .iter()
                    .fold(0.0f32, |a, x| if x.is_finite() { a.max(x.abs()) } else { 0.0 })
            });
            assert!(largest > 1e-9, "{} {} gets no gradient", kind.name(), variable.name);
        }
    }
}

#[test]
fn a_seed_gives_the_same_weights_after_training_and_another_seed_others() {
    let train = |kind: Kind, seed: u64| {
        let (variables, backbone, inputs) = paper(kind, seed);
        let labels = Tensor::from_vec((0..32).map(|i| (i % 3 == 0) as u8 as f32).collect(), 32, &Device::Cpu);
        let mut adam = Adam::new(adam::Settings::default());
        for step in 0..3 {
            let mut phase = Phase::Training(Masks::new(seed, step));
            let logits = backbone.logits(&inputs, &mut phase).unwrap();
            let loss = cross_entropy(&logits, labels.as_ref().unwrap()).unwrap();
            adam.step(&variables, &loss.backward().unwrap()).unwrap();
        }
        let all: Vec<Vec<f32>> = variables.iter().map(|v| values(&v.var).unwrap()).collect();
        assert!(all.iter().take(4).all(|table| table[..32].iter().all(|x| *x == 0.0)), "row 0 stays zeros");
        all
    };
    for kind in [Kind::Dcn, Kind::Din] {
        assert_eq!(train(kind, 1), train(kind, 1));
        assert_ne!(train(kind, 1), train(kind, 2));
    }
}

#[test]
fn an_empty_history_weighs_nothing_in_din() {
    let (_, backbone, mut inputs) = paper(Kind::Din, 1);
    let zeros = |t: &Tensor| t.zeros_like().unwrap();
    inputs.ids.history_items = zeros(&inputs.ids.history_items);
    let with_parts = backbone.logits(&inputs, &mut Phase::Serving).unwrap();
    inputs.ids.history_creators = zeros(&inputs.ids.history_creators);
    inputs.ids.history_categories = zeros(&inputs.ids.history_categories);
    let without = backbone.logits(&inputs, &mut Phase::Serving).unwrap();
    assert_eq!(values(&with_parts).unwrap(), values(&without).unwrap(), "an entry is there by its item");
    let short = |t: &Tensor| t.narrow(1, 0, 1).unwrap();
    inputs.ids.history_items = short(&inputs.ids.history_items);
    inputs.ids.history_creators = short(&inputs.ids.history_creators);
    inputs.ids.history_categories = short(&inputs.ids.history_categories);
    let shorter = backbone.logits(&inputs, &mut Phase::Serving).unwrap();
    assert_eq!(values(&shorter).unwrap(), values(&without).unwrap());
}

#[test]
fn batches_that_do_not_fit_are_named_errors() {
    let refused = |change: &dyn Fn(&mut Inputs)| {
        let (_, backbone, mut inputs) = paper(Kind::DeepFm, 1);
        change(&mut inputs);
        backbone.logits(&inputs, &mut Phase::Serving).unwrap_err().to_string()
    };
    let missing = refused(&|inputs| inputs.vector = None);
    assert!(missing.contains("the input `vector` is [], the model expects [32, 32]"), "{missing}");
    let narrow = refused(&|inputs| inputs.scalars = Some(drawn(1, &[32, 9])));
    assert!(narrow.contains("`scalars` is [32, 9], the model expects [32, 10]"), "{narrow}");
    let text = refused(&|inputs| inputs.text = None);
    assert!(text.contains("`item text`"), "{text}");
    let table = refused(&|inputs| inputs.tables.creator = drawn(1, &[20, 8]));
    assert!(table.contains("`creator table` is [20, 8], the model expects [20, 32]"), "{table}");
    let beyond = refused(&|inputs| inputs.ids.user = Tensor::full(40u32, 32, &Device::Cpu).unwrap());
    assert!(beyond.contains("ids must be below the rows"), "{beyond}");
}

#[test]
fn settings_out_of_range_are_named_errors() {
    let refused = |settings: Settings| settings.check().unwrap_err().to_string();
    let cases = [
        (Settings { d: 0, ..Settings::default() }, "the width d is 0"),
        (Settings { hidden: vec![200, 0], ..Settings::default() }, "a hidden width is 0"),
        (Settings { hidden: vec![], ..Settings::default() }, "the number of hidden layers is 0"),
        (Settings { cin: vec![101, 100], ..Settings::default() }, "interaction network is 101"),
        (Settings { attention_heads: 3, ..Settings::default() }, "the width of attention is 64"),
        (Settings { dropout: 1.0, ..Settings::default() }, "dropout in percent is 100"),
        (Settings { dropout: f64::NAN, ..Settings::default() }, "dropout in percent"),
        (Settings { scalars: 100_000, ..Settings::default() }, "the number of scalars is 100000"),
    ];
    for (settings, expected) in cases {
        let found = refused(settings);
        assert!(found.contains(expected), "{found}");
    }
    for kind in Kind::ALL {
        assert_eq!(Kind::named(kind.name()), Some(kind));
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.name()));
    }
    assert_eq!(Kind::named("fm"), None);
}
