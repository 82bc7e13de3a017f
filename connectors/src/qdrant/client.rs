//! The connection: bounded attempts with pauses, several calls at a time, counts.

use super::config::Config;
use super::error::{Failure, Verdict};
use crate::secret::Resolved;
use crate::{Error, Result};
use qdrant_client::qdrant::{PointsOperationResponse, UpdateStatus};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

/// What a store counted since it was connected: plain sums, times in microseconds.
#[derive(Debug, Default)]
pub struct Counts {
    /// Points in acknowledged upserts. One that the guard kept out is counted too: the server
    /// doesn't say.
    pub upserted: AtomicU64,
    /// Ids in acknowledged marks, with the same reserve.
    pub marked: AtomicU64,
    /// Acknowledged purges.
    pub purges: AtomicU64,
    /// Pairs looked up.
    pub lookups: AtomicU64,
    /// Ids that lookups gave.
    pub candidates: AtomicU64,
    /// Points that listings gave.
    pub listed: AtomicU64,
    /// Attempts after the first one, over all calls. Those inside the client library aren't seen.
    pub retries: AtomicU64,
    /// Calls that failed for good.
    pub failures: AtomicU64,
    /// Acknowledged write requests: upserts, marks and purges.
    pub write_requests: AtomicU64,
    /// The time that they took, attempts and pauses included.
    pub write_us: AtomicU64,
    /// Answered lookup requests.
    pub lookup_requests: AtomicU64,
    /// The time that they took, attempts and pauses included.
    pub lookup_us: AtomicU64,
}

impl Counts {
    /// Adds to a sum.
    pub(super) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    /// Adds one request and the time since its start.
    pub(super) fn request(requests: &AtomicU64, microseconds: &AtomicU64, start: Instant) {
        Counts::add(requests, 1);
        Counts::add(microseconds, u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}

/// A client with its limits.
pub(super) struct Client {
    pub(super) qdrant: qdrant_client::Qdrant,
    pub(super) config: Config,
    pub(super) counts: Arc<Counts>,
    key: Option<Resolved>,
}

impl Client {
    /// Builds the client; nothing is connected yet.
    pub(super) fn new(config: Config) -> Result<Self> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Error::fatal("read the qdrant config", problems.join("; "), "correct the config"));
        }
        let key = config.api_key.as_ref().map(|secret| secret.resolve("qdrant.api_key")).transpose()?;
        if key.as_ref().is_some_and(|key| !key.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::fatal(
                "read the secret qdrant.api_key",
                "it holds a character that no header may have",
                "put the key alone there, in one line",
            ));
        }
        let mut builder = qdrant_client::Qdrant::from_url(&config.url)
            .timeout(config.timeout())
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .api_key(key.as_ref().map(|key| key.expose().to_owned()))
            // It would print on the standard output; `collection.rs` checks the version.
            .skip_compatibility_check();
        builder.set_pool_size(config.streams);
        let qdrant = builder.build().map_err(|error| {
            Failure::Call(error).error(
                "build the qdrant client".into(),
                config.longest_pause(),
                key.as_ref().map(Resolved::expose),
            )
        })?;
        Ok(Client { qdrant, config, counts: Arc::default(), key })
    }

    /// Makes a call until it succeeds, at most 1 + `retries` times, with growing pauses between.
    ///
    /// Every call here may be applied twice, by this loop or by the client library, which repeats a
    /// broken call once by itself: each of them must be one that doesn't mind.
    ///
    /// # Errors
    /// `Retry` when the attempts are used up or the collection is gone, `Fatal` at once where
    /// another attempt can't help.
    pub(super) async fn attempt<T>(
        &self,
        context: impl Fn() -> String,
        call: impl AsyncFn() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut retried = 0;
        loop {
            let failure = match call().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let error = self.error(&failure, context());
            match failure.verdict() {
                Verdict::Again(asked) if retried < self.config.retries => {
                    let pause = self.pause(retried, asked, fastrand::f64());
                    tracing::debug!(%error, attempt = retried + 1, ?pause, "a call of qdrant is tried again");
                    retried += 1;
                    Counts::add(&self.counts.retries, 1);
                    tokio::time::sleep(pause).await;
                }
                _ => {
                    Counts::add(&self.counts.failures, 1);
                    return Err(error);
                }
            }
        }
    }

    /// The pause after the `retried`-th retry: the base doubled so often, then between its half
    /// and its whole, so that several clients don't come back at the same moment. A longer pause
    /// that the server asks for wins, up to the limit.
    fn pause(&self, retried: u32, asked: Duration, chance: f64) -> Duration {
        let longest = self.config.longest_pause();
        let doubled = self.config.retry_base_ms.saturating_mul(1 << retried.min(30));
        let whole = Duration::from_millis(doubled).min(longest);
        whole.mul_f64(0.5 + chance / 2.0).max(asked.min(longest))
    }

    /// A failure as an error of this store.
    pub(super) fn error(&self, failure: &Failure, context: String) -> Error {
        failure.error(context, self.config.longest_pause(), self.key.as_ref().map(Resolved::expose))
    }
}

/// Lets an answer pass only where the write is applied. With any other status it may come later or
/// never: unknown, so it is done again.
pub(super) fn completed(answer: PointsOperationResponse) -> std::result::Result<(), Failure> {
    match answer.result.map(|result| result.status) {
        Some(status) if status == UpdateStatus::Completed as i32 => Ok(()),
        status => Err(Failure::Unconfirmed(status.unwrap_or_default())),
    }
}

/// Runs all of them at a time, on this task, and gives their results in order. None is dropped
/// before its end: a dropped call may still be applied.
pub(super) async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, result) in running.iter_mut().filter(|(_, result)| result.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(value) => *result = Some(value),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, result)| result).collect()
}

/// The first failure that stops the job, else the first one.
pub(super) fn first_failure(results: Vec<Result<()>>) -> Result<()> {
    let mut failures: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    let fatal = failures.iter().position(|error| error.disposition == crate::Disposition::Fatal);
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.swap_remove(fatal.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disposition;

    fn client() -> Client {
        let config = Config {
            url: "http://127.0.0.1:1".into(),
            retries: 3,
            retry_base_ms: 1,
            retry_max_ms: 4,
            ..Config::default()
        };
        Client::new(config).unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn pauses_grow_to_their_limit_and_listen_to_the_server() {
        let client = client();
        let pauses: Vec<_> = (0..5).map(|n| client.pause(n, Duration::ZERO, 1.0).as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 4, 4]);
        assert_eq!(client.pause(2, Duration::ZERO, 0.0), Duration::from_millis(2));
        assert_eq!(client.pause(0, Duration::from_millis(3), 0.0), Duration::from_millis(3));
        assert_eq!(client.pause(0, Duration::from_secs(9), 0.0), Duration::from_millis(4));
        assert_eq!(client.pause(u32::MAX, Duration::ZERO, 1.0), Duration::from_millis(4));
    }

    #[test]
    fn attempts_end_at_their_limit() {
        for (fails, expected_calls, ok) in [(0, 1, true), (3, 4, true), (4, 4, false)] {
            let client = client();
            let calls = AtomicU64::new(0);
            let result = run(client.attempt(
                || "try".into(),
                async || match calls.fetch_add(1, Ordering::Relaxed) < fails {
                    true => Err(Failure::Unconfirmed(1)),
                    false => Ok(()),
                },
            ));
            assert_eq!(
                (calls.load(Ordering::Relaxed), result.is_ok()),
                (expected_calls, ok),
                "{fails} failures"
            );
            assert_eq!(client.counts.retries.load(Ordering::Relaxed), expected_calls - 1);
            if let Err(error) = result {
                assert_eq!(error.disposition, Disposition::Retry { after: Duration::from_millis(4) });
            }
        }
    }

    #[test]
    fn all_gives_every_result_in_order() {
        let ends = run(all((0..5u64)
            .map(|n| async move {
                tokio::time::sleep(Duration::from_millis(5 - n)).await;
                n
            })
            .collect()));
        assert_eq!(ends, [0, 1, 2, 3, 4]);
        assert!(run(all(Vec::<std::future::Ready<u8>>::new())).is_empty());
    }

    #[test]
    fn a_fatal_failure_comes_before_a_passing_one() {
        let retry = || Err(Error::retry(Duration::ZERO, "a", "b", "c"));
        let fatal = || Err(Error::fatal("a", "b", "c"));
        assert!(first_failure(vec![Ok(()), Ok(())]).is_ok());
        let first = first_failure(vec![Ok(()), retry(), fatal()]).unwrap_err();
        assert_eq!(first.disposition, Disposition::Fatal);
        assert_ne!(first_failure(vec![Ok(()), retry()]).unwrap_err().disposition, Disposition::Fatal);
    }

    #[test]
    fn a_key_that_no_header_takes_is_refused_unseen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let config = || Config {
            url: "http://127.0.0.1:1".into(),
            api_key: Some(crate::secret::Secret::File { file: file.clone() }),
            ..Config::default()
        };
        std::fs::write(&file, "canary\ncanary\n").unwrap();
        let error = Client::new(config()).map(|_| ()).unwrap_err();
        assert!(
            error.to_string().contains("qdrant.api_key") && !format!("{error:?}").contains("canary"),
            "{error}"
        );
        std::fs::write(&file, "canary\n").unwrap();
        assert!(Client::new(config()).is_ok());
    }
}
