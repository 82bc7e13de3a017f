//! Batches are what their samples are, and every variable is trained.

use super::super::arms::{ARMS, Arm};
use super::super::dataset::{Part, Prepared, Protocol};
use super::super::delay::Delay;
use super::super::fit::{Material, Training, fit};
use super::super::model::{Model, Sizes};
use super::super::neighbours::{Neighbours, Selecting};
use super::super::tensors::{Columns, NeighbourColumns, Retrieved, Vocabularies};
use super::super::world;
use super::paper::templates;
use super::{TRAINING, tensors};
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_operators::ict::{MAX_NEIGHBOURS, count_scalar};
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::layers::{Masks, Phase};
use ictflow_operators::ranking::variables::Role;
use ictflow_schemas::history::Label;
use ictflow_schemas::vector::VectorSum;

#[test]
fn a_batch_is_what_its_samples_are() {
    let prepared = world::prepared(Protocol::Time);
    let vocabularies = Vocabularies::of(&prepared);
    let neighbours = Neighbours::of(&prepared, Selecting::Similar.options(Delay::NONE)).unwrap();
    let nearest = neighbours.nearest[0].clone();
    let (columns, neighbours) = tensors(&prepared);
    let arm = Arm::named("attention+votes").unwrap();
    let test = prepared.range(Part::Test);
    let samples: Vec<u32> = vec![0, 5, 400, test.start as u32, test.end as u32 - 1];
    let batch = columns.batch(&samples, &arm, retrieved(&neighbours)).unwrap();
    let all: Vec<_> = prepared.samples().copied().collect();
    let (data, catalog) = (&prepared.data, prepared.data.catalog());
    let numbers = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let [_, history_text] = batch.text.as_ref().unwrap();
    let (parties, [same_item, _]) = batch.neighbours.as_ref().unwrap();
    let width = batch.ids.history_categories.dim(2).unwrap();
    for (place, sample) in samples.iter().enumerate() {
        let sample = all[*sample as usize];
        let row = &data.rows()[sample.row as usize];
        let at = |tensor: &candle_core::Tensor| numbers(tensor)[place];
        assert_eq!(at(&batch.ids.user), vocabularies.user.row(row.user));
        assert_eq!(at(&batch.ids.item), vocabularies.item.row(sample.item));
        let creator = catalog.creator(sample.item).map_or(0, |c| vocabularies.creator.row(c));
        assert_eq!(at(&batch.ids.creator), creator);
        let before = prepared.histories.before(sample.row);
        let items: Vec<u32> = before.iter().map(|row| data.rows()[*row as usize].item).collect();
        let entries = numbers(&batch.ids.history_items.get(place).unwrap());
        let known: Vec<u32> = items.iter().map(|item| vocabularies.item.row(*item)).collect();
        assert!(entries[..known.len()] == known && entries[known.len()..].iter().all(|row| *row == 0));
        let categories = numbers(&batch.ids.history_categories.get(place).unwrap());
        for (item, found) in items.iter().zip(categories.chunks(width)) {
            let own = catalog.categories(*item);
            assert!(own.iter().zip(found).all(|(c, row)| vocabularies.category.row(*c) == *row));
            assert!(found[own.len()..].iter().all(|row| *row == 0));
        }
        let texts = items.iter().filter_map(|item| prepared.texts[*item as usize].as_deref());
        let mean = VectorSum::over(texts).mean_f32(prepared.text_width);
        assert_eq!(history_text.get(place).unwrap().to_vec1::<f32>().unwrap(), mean);
        assert_eq!(batch.label.to_vec1::<f32>().unwrap()[place], f32::from(u8::from(sample.positive)));
        // A neighbour's place among the parties leads back to its user and item.
        let begin = samples[place] as usize * MAX_NEIGHBOURS;
        let users = numbers(&parties.users);
        let party = numbers(&same_item.user.get(place).unwrap());
        for (of, place) in (begin..begin + MAX_NEIGHBOURS).zip(party) {
            let there = nearest.there[of] > 0.0;
            let expected = if there { vocabularies.user.row(nearest.users[of]) } else { 0 };
            assert_eq!(users[place as usize], expected);
        }
    }
    assert!(nearest.there.iter().any(|there| *there > 0.0));
    // The test's items are new: the row of what training doesn't know, but a text.
    assert_eq!(numbers(&batch.ids.item)[4] as usize, columns.rows.item - 1);
}

/// The item's own rate is the beginning of the votes.
#[test]
fn the_rate_is_what_the_ring_of_the_item_says() {
    let prepared = world::prepared(Protocol::Time);
    let (columns, neighbours) = tensors(&prepared);
    let row = |arm: &str, sample: u32| -> Vec<f32> {
        let batch = columns.batch(&[sample], &Arm::named(arm).unwrap(), retrieved(&neighbours)).unwrap();
        batch.scalars.unwrap().get(0).unwrap().to_vec1().unwrap()
    };
    let all: Vec<_> = prepared.samples().copied().collect();
    let mut compared = 0;
    for (place, sample) in (0_u32..).zip(&all) {
        let own = &prepared.data.rows()[sample.row as usize];
        let earlier = all.iter().filter(|other| {
            let row = &prepared.data.rows()[other.row as usize];
            other.item == sample.item && row.user != own.user && row.time < own.time
        });
        let (mut n, mut p) = (0.0_f32, 0.0_f32);
        for other in earlier {
            n += 1.0;
            p += f32::from(u8::from(other.positive));
        }
        let scalars = row("strong+rate", place);
        assert_eq!(scalars[2], count_scalar(n as u64), "sample {place}");
        assert!((scalars[3] - (2.0 * p - n) / (2.0 * (n + 2.0))).abs() < 1e-6, "sample {place}");
        assert_eq!(scalars, row("votes", place)[..4]);
        compared += usize::from(n > 0.0);
    }
    assert!(compared > 1_000, "only {compared} have a ring");
}

#[test]
fn own_labels_are_known_after_their_delay() {
    let prepared = world::prepared(Protocol::Time);
    let (columns, _) = tensors(&prepared);
    let delay: Delay = "3h".parse().unwrap();
    let delayed = columns.delayed(&prepared, delay).unwrap();
    let arm = Arm::named("strong").unwrap();
    let scalars = |columns: &Columns, sample: u32| -> Vec<f32> {
        let batch = columns.batch(&[sample], &arm, Retrieved::default()).unwrap();
        batch.scalars.unwrap().get(0).unwrap().to_vec1().unwrap()
    };
    let all: Vec<_> = prepared.samples().copied().collect();
    let mut fewer = 0;
    for (place, sample) in (0_u32..).zip(&all) {
        let rows = prepared.data.rows();
        let now = rows[sample.row as usize].time;
        let before = prepared.histories.before(sample.row);
        let known = before.iter().filter(|row| rows[**row as usize].time + 10_800_000 < now).count();
        let found = scalars(&delayed, place)[1];
        assert_eq!(found, count_scalar(known as u64), "sample {place}");
        fewer += usize::from(found < scalars(&columns, place)[1]);
    }
    assert!(fewer > 100, "only {fewer} know less");
}

/// The gradient of one step of an arm reaches every variable.
#[test]
fn every_variable_gets_a_gradient() {
    let prepared = world::prepared(Protocol::Time);
    let (columns, neighbours) = tensors(&prepared);
    let samples: Vec<u32> = (700..764).collect();
    for arm in ARMS {
        let demonstrations = templates(&prepared, arm);
        let retrieved = Retrieved { demonstrations: demonstrations.as_ref(), ..retrieved(&neighbours) };
        let model = Model::new(Kind::DeepFm, arm, &Sizes::default(), &columns, 1).unwrap();
        let batch = columns.batch(&samples, &arm, retrieved).unwrap();
        let loss = model.loss(&batch, &mut Phase::Training(Masks::new(1, 1)), 1.0).unwrap();
        let gradients = loss.backward().unwrap();
        for variable in model.variables.trained() {
            let gradient = gradients.get(&variable.var);
            let size = gradient.map(|g| g.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            assert!(size.is_some_and(|size| size > 0.0), "{}: {} has {size:?}", arm.name, variable.name);
        }
    }
}

/// Left out one by one, a sample of training may have a neighbour that only the test names, whose row a step's
/// gradient reaches. What is new must stay zeros all the same: the file that serving reads has no such row.
#[test]
fn ids_that_training_does_not_name_stay_zeros_though_neighbours_do() {
    let mut data = world::data();
    let begin = data.rows()[0].time;
    for n in 0..8 {
        // The earlier engagement is the history of the later one, which is the test's.
        for (item, time) in [(n, begin + 1), (n + 8, begin + 2)] {
            let user = format!("lonely{n}");
            data.add_row(&user, &format!("i{item}"), time, Label::Positive, true).unwrap();
        }
    }
    data.sort();
    let cache = tempfile::tempdir().unwrap();
    let prepared = Prepared::of(data, Protocol::LeaveOneOut, &mut Hashed::new(16), cache.path()).unwrap();
    let (columns, neighbours) = tensors(&prepared);
    let arm = Arm::named("attention+votes").unwrap();
    let train: Vec<u32> = columns.range(Part::Train).map(|sample| sample as u32).collect();
    let batch = columns.batch(&train, &arm, retrieved(&neighbours)).unwrap();
    let users = batch.neighbours.unwrap().0.users.to_vec1::<u32>().unwrap();
    assert!(
        users.contains(&(columns.rows.user as u32 - 1)),
        "no neighbour is one that training doesn't name"
    );
    let model = Model::new(Kind::DeepFm, arm, &Sizes::default(), &columns, 1).unwrap();
    let material = Material {
        columns: &columns,
        retrieved: retrieved(&neighbours),
        valid_users: &prepared.users(Part::Valid),
        valid_labels: &prepared.labels(Part::Valid),
    };
    fit(&model, &material, &Training { epochs: 2, ..TRAINING }, 1, "lonely").unwrap();
    for table in model.variables.iter().filter(|variable| variable.role == Role::Table) {
        let values = table.var.to_vec2::<f32>().unwrap();
        assert!(values.last().unwrap().iter().all(|x| *x == 0.0), "the last row of {}", table.name);
        assert!(values[1].iter().any(|x| *x != 0.0), "row 1 of {}", table.name);
    }
}

fn retrieved(neighbours: &NeighbourColumns) -> Retrieved<'_> {
    Retrieved { neighbours: Some(neighbours), demonstrations: None }
}
