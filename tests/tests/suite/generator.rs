//! Three calls of the real LLM, with the real encoder, through a whole job.

use ictflow_connectors::encoder::minilm::MiniLm;
use ictflow_connectors::llm::local::{Decoding, Local};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::{Draft, Generate};
use ictflow_dataflows::config::checked::models;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::{CotRecord, CotRequest, CotStatus};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{Hooked, World, event, feed, item, template, weights};
use std::sync::{Arc, Mutex};

type Drafts = Arc<Mutex<Vec<(CotRequest, Draft)>>>;

#[test]
fn three_answers_of_the_real_model_stand_on_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    let semantics = Semantics { cot_stride: stride, ..Semantics::default() };
    let world = World::new(folder.path(), "llm", semantics, weights(384));
    let drafts = Drafts::default();
    let file = models().join("llm").join("model.gguf");
    let inner = Local::open(&file, Prompt::builtin(), &Decoding::default()).unwrap_or_else(|e| panic!("{e}"));
    let hash = inner.model().to_owned();
    let encoder = MiniLm::load(&models().join("encoder")).unwrap_or_else(|e| panic!("{e}"));
    let kept = drafts.clone();
    // What the model wrote is kept beside passing it on.
    let hook = move |inner: &mut dyn Generate, request: &CotRequest, attempt: u32| {
        let draft = inner.generate(request, attempt)?;
        kept.lock().unwrap().push((request.clone(), draft.clone()));
        Ok(draft)
    };
    let generator = Box::new(Hooked { inner: Box::new(inner), hook });
    let mut job = world.start(generator, Box::new(encoder));
    let minute = 60_000;
    let mut lines = vec![
        item("1", Some("Heat (1995)"), "1"),
        item("2", Some("Fargo (1996)"), "1"),
        item("3", Some("Kolya (1996)"), "1"),
    ];
    for (n, (film, stars)) in [("1", 5.0), ("2", 4.0), ("3", 1.0), ("1", 2.0)].into_iter().enumerate() {
        lines.push(event(
            "u",
            &format!("e{n}"),
            film,
            "rate",
            Some(stars),
            1_000_000_000 + minute * n as i64,
        ));
    }
    feed(&mut job, &lines, world.partitions);

    let drafts = drafts.lock().unwrap();
    assert_eq!(job.requester().accounting.called, 3);
    assert_eq!(job.requester().accounting.attempts as usize, drafts.len());
    let records: Vec<CotRecord> =
        world.compacted(Topic::Cot).values().map(|value| CotRecord::decode(value).unwrap()).collect();
    assert_eq!(records.len(), 3);
    let mut plain = template();
    for record in &records {
        assert_eq!(record.status, CotStatus::Ok, "{record:?}");
        assert_eq!(record.llm_model, hash);
        assert_eq!((hash.len(), record.parameters.contains("guided")), (64, true));
        assert!(record.tokens_in > 0 && record.tokens_out > 0 && record.quality > 0.0);
        let (request, draft) = drafts.iter().find(|(_, draft)| draft.text == record.text).unwrap();
        let fixed = plain.generate(request, 1).unwrap();
        assert_eq!(draft.written.len(), fixed.written.len());
        for (written, fixed) in draft.written.iter().zip(&fixed.written) {
            assert_ne!(written, fixed);
        }
    }
    // Each has a vector, so each is a demonstration.
    assert_eq!(job.demonstrations().len(), 3);
    assert!(job.demonstrations().iter().all(|c| c.fresh && c.cot.len() == 384));
}
