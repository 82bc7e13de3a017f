use super::served::Stood;
use super::*;
use crate::ict::{Shape, Weights, untrained, untrained_of};
use crate::retrieval::UserView;
use crate::retrieval::neighbours::tests::labelled;
use ictflow_schemas::catalog::{ItemState, ItemVector};
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::Identity;
use ictflow_schemas::vector::{VectorSum, quantise};

fn item(n: usize, creator: &str) -> Item {
    let text = text_digest(&format!("{n}"));
    let mut vector = vec![0.0; 384];
    vector[n % 384] = 1.0;
    Arc::new(ItemState {
        text,
        creator: Some(creator.into()),
        categories: vec!["c".into()],
        vector: Some(ItemVector { text, vector: quantise(&vector) }),
    })
}

fn step(features: &mut Features, inputs: Vec<(Input, isize)>) -> Vec<FeatureUpdate> {
    outputs(features, inputs).into_iter().filter_map(Output::update).collect()
}

/// The outputs of an epoch under the weights that serve.
fn outputs(features: &mut Features, inputs: Vec<(Input, isize)>) -> Vec<Output> {
    let ict_weights = features.versions.serving().version().to_owned();
    let actives = Arc::new(Actives { ict_weights, ..Actives::default() });
    let shadow = features.versions.shadow().map(|weights| weights.version().into());
    let clock = Clock { maxima: [].into(), now: 0, publish: true, actives, shadow };
    let mut changes: Changes<Input> = inputs;
    changes.push((Input::Clock(0, clock), 1));
    let mut out = Changes::new();
    features.step(changes, &mut out);
    out.into_iter().map(|(output, _)| output).collect()
}

fn values(features: &mut Features, pairs: Vec<PairUpdate>) -> Vec<Option<Arc<[u8]>>> {
    let inputs = pairs.into_iter().map(|pair| (Input::Pair(pair), 1)).collect();
    step(features, inputs).into_iter().map(|update| update.value).collect()
}

/// More pairs than one batch holds, some without a feature; then items that changed.
#[test]
fn what_is_kept_and_batched_changes_no_byte() {
    let weights = Arc::new(
        Weights::from_safetensors(&untrained(7, Shape::default()).expect("a shape")).expect("weights"),
    );
    let view = |user: usize, creator: &str| {
        let items = [3, 5, 3].map(|n| (format!("i{n}").into(), Some(item(n, creator))));
        let vectors = [3, 5, 3].map(|n| item(n, creator).vector.clone().expect("it has one").vector);
        let text = VectorSum::over(vectors.iter().map(|vector| &**vector));
        let items = items.into_iter().chain([(format!("gone{user}").into(), None)]).collect();
        Arc::new(UserView { history: [].into(), items, text })
    };
    let pairs = |creator: &str| -> Vec<PairUpdate> {
        let views: Vec<_> = (0..3).map(|user| view(user, creator)).collect();
        let pair = |n: usize| PairUpdate {
            user: format!("u{}", n % 3).into(),
            item: format!("i{}", n / 3).into(),
            retrieved: (!n.is_multiple_of(7)).then(|| Retrieved {
                view: views[n % 3].clone(),
                item: item(n / 3, creator),
                used: vec![],
            }),
            live: true,
        };
        let mut pairs: Vec<PairUpdate> = (0..2 * BATCH + 5).map(pair).collect();
        // The operator emits in the order of pairs.
        pairs.sort_by(|a, b| (&a.user, &a.item).cmp(&(&b.user, &b.item)));
        pairs
    };
    let mut kept = Features::new(weights.clone(), &Semantics::default());
    let mut made = Vec::new();
    for creator in ["a", "b", "a"] {
        let together = values(&mut kept, pairs(creator));
        let alone: Vec<_> = pairs(creator)
            .into_iter()
            .flat_map(|pair| values(&mut Features::new(weights.clone(), &Semantics::default()), vec![pair]))
            .collect();
        assert_eq!(together, alone);
        assert_eq!(together.iter().filter(|value| value.is_none()).count(), (2 * BATCH + 5).div_ceil(7));
        made.push(together);
    }
    assert_eq!(made[0], made[2]);
    assert!(made[0].iter().zip(&made[1]).all(|(a, b)| a.is_none() || a != b), "the creator counts");
}

/// A pair of the user `u` on an item.
fn pair(n: usize) -> PairUpdate {
    let retrieved = Retrieved { view: Arc::default(), item: item(n, "a"), used: vec![] };
    PairUpdate { user: "u".into(), item: format!("i{n}").into(), retrieved: Some(retrieved), live: true }
}

/// What the sources say of that pair: others on its item, the user on others.
fn neighbours(n: usize, of_user: &[usize]) -> NeighbourUpdate {
    let of = |user: &str, n: usize, score: i64| Neighbour {
        score,
        example: labelled(user, &format!("i{n}"), 0, 60_000 * score, n),
    };
    let sources = Sources {
        same_item: (0..20).map(|score| of(&format!("v{score}"), n, score)).collect(),
        same_user: of_user.iter().map(|other| of("u", *other, *other as i64)).collect(),
        ..Sources::default()
    };
    NeighbourUpdate { user: "u".into(), item: format!("i{n}").into(), sources: Some(Arc::new(sources)) }
}

fn decoded(updates: Vec<FeatureUpdate>) -> Vec<Feature> {
    let decode =
        |update: FeatureUpdate| Feature::decode(&update.value.expect("a feature")).expect("a record");
    updates.into_iter().map(decode).collect()
}

fn weights(kind: Kind) -> Arc<Weights> {
    let shape =
        Shape { user_rows: 64, item_rows: 64, creator_rows: 16, category_rows: 16, ..Shape::default() };
    Arc::new(Weights::from_safetensors(&untrained_of(kind, 7, shape).expect("a shape")).expect("weights"))
}

#[test]
fn a_decoders_vector_stands_while_neighbours_change() {
    let mut features = Features::new(weights(Kind::Decoder), &Semantics::default());
    // Neighbours of what has no feature yet give none.
    assert_eq!(step(&mut features, vec![(Input::Neighbours(neighbours(1, &[2])), 1)]), []);
    let first = decoded(step(&mut features, vec![(Input::Pair(pair(1)), 1)]));
    let [first] = &first[..] else { panic!("one record, not {first:?}") };
    assert_eq!((first.neighbours.len(), first.vector_kind), (21, Kind::Decoder));
    assert_eq!(first.neighbours[20].source, NeighbourSource::SameUser);
    let next = decoded(step(&mut features, vec![(Input::Neighbours(neighbours(1, &[2, 3])), 1)]));
    assert_eq!(next[0].ict, first.ict);
    assert_eq!(next[0].neighbours.len(), 22);
    // It goes with what retrieval says, whatever neighbours said before or after.
    let gone = PairUpdate { retrieved: None, live: false, ..pair(1) };
    let none = NeighbourUpdate { sources: None, ..neighbours(1, &[]) };
    let mut both = vec![(Input::Neighbours(none), 1), (Input::Pair(gone), 1)];
    for _ in 0..2 {
        let out = step(&mut features, both.clone());
        let said: Vec<_> = out.iter().map(|update| (update.live, &update.value)).collect();
        assert_eq!(said, [(false, &None)]);
        assert!(features.pairs.is_empty());
        step(&mut features, vec![(Input::Neighbours(neighbours(1, &[2])), 1), (Input::Pair(pair(1)), 1)]);
        both.reverse();
    }
}

#[test]
fn a_vector_of_attention_follows_its_neighbours_and_their_items() {
    let semantics = Semantics::default();
    let mut kept = Features::new(weights(Kind::Attention), &semantics);
    let items = |creator: &str| -> Vec<(Input, isize)> {
        (0..6).map(|n| (Input::Item(0, (format!("i{n}").into(), item(n, creator))), 1)).collect()
    };
    let all = |inputs: &mut Vec<(Input, isize)>| {
        for n in [1, 2] {
            inputs.extend([(Input::Pair(pair(n)), 1), (Input::Neighbours(neighbours(n, &[n + 2])), 1)]);
        }
    };
    let mut inputs = items("a");
    all(&mut inputs);
    let first = decoded(step(&mut kept, inputs));
    assert_eq!(first.len(), 2);
    assert!(first.iter().all(|feature| feature.k == 0 && feature.vector_kind == Kind::Attention));
    assert_ne!(first[0].ict, first[1].ict);
    // Item 4 is a neighbour's of the pair on item 2 alone, item 5 of none.
    let change = |n: usize| {
        let id: Id = format!("i{n}").into();
        [(Input::Item(0, (id.clone(), item(n, "b"))), 1), (Input::Item(0, (id, item(n, "a"))), -1)]
    };
    assert_eq!(step(&mut kept, change(5).into()), []);
    let touched = decoded(step(&mut kept, change(4).into()));
    assert_eq!(touched.iter().map(|feature| feature.item_id.as_str()).collect::<Vec<_>>(), ["i2"]);
    assert_ne!(touched[0].ict, first[1].ict);
    // What was kept is what a new operator makes.
    let mut anew = Features::new(weights(Kind::Attention), &semantics);
    let mut inputs = items("a");
    inputs.extend([change(5), change(4)].concat());
    all(&mut inputs);
    let anew = decoded(step(&mut anew, inputs));
    assert_eq!([&first[0], &touched[0]], [&anew[0], &anew[1]]);
}

/// Another version of the same kind and widths, with tables of other sizes.
fn other_weights(kind: Kind) -> Arc<Weights> {
    let shape =
        Shape { user_rows: 32, item_rows: 96, creator_rows: 16, category_rows: 8, ..Shape::default() };
    Arc::new(Weights::from_safetensors(&untrained_of(kind, 8, shape).expect("a shape")).expect("weights"))
}

/// Pairs with neighbours, and what weights of a kind read of items.
fn standing(kind: Kind) -> Vec<(Input, isize)> {
    let mut inputs = Vec::new();
    if kind == Kind::Attention {
        inputs.extend((0..6).map(|n| (Input::Item(0, (format!("i{n}").into(), item(n, "a"))), 1)));
    }
    for n in [1, 2] {
        inputs.extend([(Input::Pair(pair(n)), 1), (Input::Neighbours(neighbours(n, &[n + 2])), 1)]);
    }
    // One that waits for a vector has nothing to be made anew.
    inputs.push((Input::Pair(PairUpdate { retrieved: None, ..pair(5) }), 1));
    inputs
}

#[test]
fn a_switch_of_weights_makes_every_feature_anew_and_keeps_nothing_of_the_old_ones() {
    for kind in [Kind::Decoder, Kind::Attention] {
        let inputs = || standing(kind);
        let (first, second) = (weights(kind), other_weights(kind));
        let mut switched = Features::new(first.clone(), &Semantics::default());
        let before = step(&mut switched, inputs());
        assert_eq!(step(&mut switched, vec![]), [], "without a switch nothing is touched");
        switched.versions.serve(second.clone()).expect("it fits");
        let after = step(&mut switched, vec![]);
        // A pair that comes later reads the items that were kept.
        let later = step(&mut switched, vec![(Input::Pair(pair(3)), 1)]);
        let mut fresh = Features::new(second, &Semantics::default());
        let made: Vec<FeatureUpdate> =
            step(&mut fresh, inputs()).into_iter().filter(|update| update.value.is_some()).collect();
        assert_eq!(after, made, "{kind}");
        assert_eq!(later, step(&mut fresh, vec![(Input::Pair(pair(3)), 1)]), "{kind}");
        for (old, new) in decoded(before.into_iter().filter(|u| u.value.is_some()).collect())
            .into_iter()
            .zip(decoded(after))
        {
            assert_ne!((&old.ict, &old.ict_weights), (&new.ict, &new.ict_weights));
        }
        // And back: the same bytes as at first.
        switched.versions.serve(first.clone()).expect("it fits");
        let back = step(&mut switched, vec![]);
        let mut anew = Features::new(first, &Semantics::default());
        step(&mut anew, inputs());
        let mut expected = step(&mut anew, vec![(Input::Pair(pair(3)), 1)]);
        expected.extend(step(&mut Features::new(weights(kind), &Semantics::default()), inputs()));
        expected.retain(|update| update.value.is_some());
        expected.sort();
        assert_eq!(back, expected, "{kind}");
    }
}

#[test]
fn epochs_that_do_not_publish_ask_for_no_weights() {
    let mut features = Features::new(weights(Kind::Decoder), &Semantics::default());
    let actives = Arc::new(Actives { ict_weights: "gone".into(), ..Actives::default() });
    let clock = Clock { maxima: [].into(), now: 0, publish: false, actives, shadow: None };
    let mut out = Changes::new();
    features.step(vec![(Input::Clock(0, clock), 1)], &mut out);
    assert!(out.is_empty());
    assert_eq!(step(&mut features, vec![(Input::Pair(pair(1)), 1)]).len(), 1);
}

#[test]
fn a_shadow_has_its_own_record_of_each_pair_and_changes_none_that_serves() {
    for kind in [Kind::Decoder, Kind::Attention] {
        let change = || {
            let id: Id = "i4".into();
            match kind {
                Kind::Decoder => vec![(Input::Neighbours(neighbours(2, &[4, 5])), 1)],
                Kind::Attention => vec![
                    (Input::Item(0, (id.clone(), item(4, "b"))), 1),
                    (Input::Item(0, (id, item(4, "a"))), -1),
                ],
            }
        };
        let values = |updates: &[FeatureUpdate]| -> Vec<Option<Arc<[u8]>>> {
            updates.iter().map(|update| update.value.clone()).collect()
        };
        let beside = |updates: &[FeatureUpdate]| -> Vec<Option<Arc<[u8]>>> {
            updates.iter().map(|update| Some(update.shadow.as_ref()?.value.clone())).collect()
        };
        let mut plain = Features::new(weights(kind), &Semantics::default());
        let mut other = Features::new(other_weights(kind), &Semantics::default());
        let mut shadowed = Features::new(weights(kind), &Semantics::default());
        let first = step(&mut shadowed, standing(kind));
        assert_eq!(first, step(&mut plain, standing(kind)));
        assert!(first.iter().all(|update| update.shadow.is_none()));
        // It comes to pairs that stand, and goes with them from then on.
        shadowed.versions.stand_beside(Some(other_weights(kind))).expect("it fits");
        let with = step(&mut shadowed, vec![]);
        let expected: Vec<FeatureUpdate> =
            step(&mut other, standing(kind)).into_iter().filter(|update| update.value.is_some()).collect();
        assert_eq!(beside(&with), values(&expected), "{kind}");
        assert_eq!(values(&with), values(&first[..2]), "{kind}");
        for update in &with {
            let cosine = update.shadow.as_ref().expect("a shadow").cosine;
            assert!((-999_999..999_999).contains(&cosine), "{cosine}");
        }
        let with = step(&mut shadowed, change());
        assert_eq!((with.len(), beside(&with)), (1, values(&step(&mut other, change()))), "{kind}");
        assert_eq!(values(&with), values(&step(&mut plain, change())), "{kind}");
        // The same weights agree, and without any nothing is beside.
        shadowed.versions.stand_beside(Some(weights(kind))).expect("it fits");
        let same = step(&mut shadowed, vec![]);
        assert_eq!(beside(&same), values(&same), "{kind}");
        assert!(same.iter().all(|update| update.shadow.as_ref().is_some_and(|s| s.cosine == 1_000_000)));
        shadowed.versions.stand_beside(None).expect("none fits");
        let without = step(&mut shadowed, vec![]);
        assert_eq!((values(&without), beside(&without)), (values(&same), vec![None, None]), "{kind}");
    }
}

/// An impression of that pair.
fn shown(n: usize, id: &str) -> Shown {
    let identity = Identity { user: "u".into(), event_time: 5, event_id: id.into() };
    Shown { identity, item: format!("i{n}").into() }
}

/// What the impressions of an epoch were answered, in order of their ids.
fn answers(outputs: Vec<Output>) -> Vec<(String, Stood)> {
    let mut answers: Vec<(String, Stood)> = outputs
        .into_iter()
        .filter_map(Output::served)
        .map(|served| (served.shown.identity.event_id.to_string(), served.stood))
        .collect();
    answers.sort();
    answers
}

#[test]
fn an_impression_is_answered_by_what_stood_before_its_epoch() {
    for kind in [Kind::Decoder, Kind::Attention] {
        let (one, two) = (weights(kind), other_weights(kind));
        let mut features = Features::new(one.clone(), &Semantics::default());
        // The epoch that makes the feature doesn't show it yet, wherever the impression stands among its
        // changes; a pair that waits for its vector has none.
        let inputs = vec![
            (Input::Shown(shown(1, "first")), 1),
            (Input::Pair(pair(1)), 1),
            (Input::Neighbours(neighbours(1, &[2])), 1),
            (Input::Shown(shown(1, "second")), 1),
            (Input::Pair(PairUpdate { retrieved: None, ..pair(3) }), 1),
        ];
        let made = outputs(&mut features, inputs);
        assert_eq!(answers(made.clone()), []);
        let made: Vec<FeatureUpdate> = made.into_iter().filter_map(Output::update).collect();
        let feature = &decoded(made[..1].to_vec())[0];
        // The next epoch changes it, under other weights, and is answered by what stood.
        features.versions.serve(two.clone()).expect("it fits");
        let inputs = vec![
            (Input::Neighbours(neighbours(1, &[2, 3])), 1),
            (Input::Shown(shown(1, "a")), 1),
            (Input::Shown(shown(1, "b")), 1),
            (Input::Shown(shown(2, "unknown")), 1),
            (Input::Shown(shown(3, "waits")), 1),
        ];
        let next = outputs(&mut features, inputs);
        let answered = answers(next.clone());
        assert_eq!(answered.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(answered[0].1, answered[1].1);
        let served = answered[0].1.record(7);
        assert_eq!((served.epoch, served.ict_weights.as_str()), (7, one.version()));
        assert_eq!(served.vector_kind, feature.vector_kind);
        assert_eq!((&served.ict, &served.votes), (&feature.ict, &feature.votes));
        let ids = |feature: &Feature| feature.neighbours.iter().map(|n| n.id.clone()).collect::<Vec<_>>();
        assert_eq!(served.neighbours, ids(feature));
        assert_eq!(served.demonstrations.len(), feature.demonstrations.len());
        assert_eq!(Stood::of(&served).as_ref(), Some(&answered[0].1), "it comes back from its record");
        // What the epoch made of it is what the one after is answered.
        let changed = decoded(next.into_iter().filter_map(Output::update).collect());
        let later = answers(outputs(&mut features, vec![(Input::Shown(shown(1, "c")), 1)]));
        let later = later[0].1.record(8);
        assert_eq!((&later.neighbours, later.ict_weights.as_str()), (&ids(&changed[0]), two.version()));
        assert_eq!(later.ict, changed[0].ict);
        // A pair that went is answered for the last time in the epoch in which it goes.
        let gone = PairUpdate { retrieved: None, live: false, ..pair(1) };
        let none = NeighbourUpdate { sources: None, ..neighbours(1, &[]) };
        let inputs =
            vec![(Input::Pair(gone), 1), (Input::Neighbours(none), 1), (Input::Shown(shown(1, "d")), 1)];
        assert_eq!(answers(outputs(&mut features, inputs)).len(), 1);
        assert_eq!(answers(outputs(&mut features, vec![(Input::Shown(shown(1, "e")), 1)])), []);
    }
}

#[test]
fn what_served_demonstrations_is_told_by_their_ids() {
    let damaged = ictflow_schemas::example::Served {
        epoch: 1,
        ict_weights: "w".into(),
        vector_kind: Kind::Decoder,
        demonstrations: vec!["no id".into()],
        neighbours: vec![],
        votes: vec![],
        ict: vec![],
    };
    assert_eq!(Stood::of(&damaged), None);
}
