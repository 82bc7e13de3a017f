//! temp
use super::Generate;
use crate::Error;
use ictflow_schemas::cot::*;
use ictflow_schemas::framing::Digest;
/// x
pub struct Unanswered {
    /// x
    pub error: Error,
    /// x
    pub attempt: u32,
}
/// x
pub fn answer(
    g: &mut dyn Generate,
    r: &CotRequest,
    v: &PromptView,
    created_at: i64,
    first: u32,
    on_call: &mut dyn FnMut(&Digest, u32),
) -> Result<CotRecord, Unanswered> {
    on_call(&r.key, first);
    let d = g.generate(r, first).map_err(|error| Unanswered { error, attempt: first })?;
    Ok(CotRecord {
        status: CotStatus::Ok,
        user_id: v.user.to_string(),
        item_id: v.item.to_string(),
        decision: v.decision.word().into(),
        prompt_version: g.prompt_version().into(),
        llm_model: g.model().into(),
        parameters: g.parameters().into(),
        text: d.text,
        attempts: 1,
        tokens_in: 0,
        tokens_out: 0,
        finish_reason: d.finish_reason,
        quality: 1.0,
        created_at,
    })
}
/// x
pub struct Tmp;
impl Generate for Tmp {
    fn model(&self) -> &str {
        "template"
    }
    fn prompt_version(&self) -> &str {
        "p@1"
    }
    fn parameters(&self) -> &str {
        "{}"
    }
    fn attempts(&self) -> u32 {
        1
    }
    fn generate(&mut self, r: &CotRequest, _a: u32) -> crate::Result<super::Draft> {
        Ok(super::Draft {
            text: format!("The viewer {:?} {} {}", r.decision, r.item.title, r.history.len()),
            written: vec![],
            tokens_in: 1,
            tokens_out: 1,
            finish_reason: "stop".into(),
        })
    }
}
/// x
pub struct TmpE;
impl crate::encoder::Embed for TmpE {
    fn id(&self) -> &str {
        "hashed:384"
    }
    fn width(&self) -> usize {
        384
    }
    fn embed(&mut self, texts: &[String]) -> crate::Result<Vec<Vec<f32>>> {
        Ok(texts
            .iter()
            .map(|t| {
                let mut s = ictflow_schemas::framing::text_digest(t).number();
                let v: Vec<f64> = (0..384)
                    .map(|_| {
                        s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        ((s >> 33) as f64 / (1u64 << 31) as f64) - 0.5
                    })
                    .collect();
                let n = v.iter().map(|x| x * x).sum::<f64>().sqrt();
                v.iter().map(|x| (x / n) as f32).collect()
            })
            .collect())
    }
}
