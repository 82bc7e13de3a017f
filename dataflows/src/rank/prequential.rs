//! Prequential measurement: each labelled event is predicted from the newest vector of before its label, and only
//! then may the job learn the label.
//!
//! The caller keeps that order: [`Prequential::predict`] with the view as it stands, then the events go to the
//! job. A vector whose history has an event of after the one that is predicted shows that the order was broken,
//! and ends the measurement. Events without a live vector are counted and left out for all alike, so that the
//! contenders are measured on the same rows.
//!
//! **Memory**: 5 B an event, 8 B an event and contender, an id a user.

use super::catalog::Catalog;
use super::ranker::Ranker;
use super::score::{Candidate, Reads, probability};
use super::view::View;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ranking::metrics::{auc, gauc, log_loss};
use ictflow_schemas::{Id, Millis};
use serde::Serialize;
use std::collections::HashMap;

/// A ranker that is measured, and what it reads.
#[derive(Clone, Debug)]
pub struct Contender<'a> {
    /// Its name in the report.
    pub name: String,
    /// The ranker.
    pub ranker: &'a Ranker,
    /// What it reads of a feature; the rest counts as zeros.
    pub reads: Reads,
}

impl<'a> Contender<'a> {
    /// A ranker as it is, and once more without the vector's and the votes' part.
    pub fn with_and_without(ranker: &'a Ranker) -> Vec<Self> {
        let contender = |name: &str, reads| Contender { name: name.to_owned(), ranker, reads };
        vec![contender("with", Reads::ALL), contender("without", Reads::NEITHER)]
    }
}

/// A labelled event that is to be predicted.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// The user.
    pub user: &'a str,
    /// The item.
    pub item: &'a str,
    /// When it happened.
    pub time: Millis,
    /// Its label.
    pub positive: bool,
}

/// A measurement under way.
#[derive(Debug)]
pub struct Prequential<'a> {
    contenders: Vec<Contender<'a>>,
    /// By contender, a probability an event.
    scores: Vec<Vec<f64>>,
    labels: Vec<bool>,
    users: Vec<u32>,
    numbers: HashMap<Id, u32>,
    without_vector: u64,
}

/// What a measurement found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Events that were predicted.
    pub predicted: u64,
    /// How many of them are positive.
    pub positive: u64,
    /// Their users.
    pub users: u64,
    /// Events whose pair had no live vector: predicted by nobody.
    pub without_vector: u64,
    /// One row a contender.
    pub rows: Vec<Row>,
}

/// The metrics of a contender; `None` where there is none, such as an AUC of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The area under the ROC curve over all events.
    pub auc: Option<f64>,
    /// Its mean within users, weighted by their events.
    pub gauc: Option<f64>,
    /// The mean negative logarithm of the probability of the true label.
    pub log_loss: Option<f64>,
}

impl<'a> Prequential<'a> {
    /// A measurement of these.
    pub fn new(contenders: Vec<Contender<'a>>) -> Self {
        let scores = contenders.iter().map(|_| Vec::new()).collect();
        Prequential {
            contenders,
            scores,
            labels: Vec::new(),
            users: Vec::new(),
            numbers: HashMap::new(),
            without_vector: 0,
        }
    }

    /// Predicts events from the vectors that stand in the view. None of their labels may be known to the job
    /// yet.
    ///
    /// # Errors
    /// `Fatal` where a vector was made of a later event than the one it predicts, and those of
    /// [`Ranker::logits`]. Nothing of the events is kept then.
    pub fn predict(&mut self, view: &View, catalog: &Catalog, events: &[Labelled<'_>]) -> Result<()> {
        let mut candidates = Vec::with_capacity(events.len());
        let mut predicted = Vec::with_capacity(events.len());
        for event in events {
            let Some(vector) = view.get(event.user, event.item) else { continue };
            if let Some(newer) = vector.event_time.filter(|newest| *newest > event.time) {
                return Err(Error::fatal(
                    "measure prequentially",
                    format!(
                        "the vector of user {} was made of an event at {newer}, the predicted one is of {}",
                        event.user, event.time
                    ),
                    "figures would be false: predict events in their order, each before the job reads it",
                ));
            }
            candidates.push(Candidate { user: event.user, item: event.item, vector });
            predicted.push(event);
        }
        let logits = self
            .contenders
            .iter()
            .map(|contender| contender.ranker.logits(&candidates, catalog, contender.reads))
            .collect::<Result<Vec<_>>>()?;
        for (scores, logits) in self.scores.iter_mut().zip(logits) {
            scores.extend(logits.into_iter().map(probability));
        }
        self.without_vector += (events.len() - predicted.len()) as u64;
        for event in predicted {
            self.labels.push(event.positive);
            let next = self.numbers.len() as u32;
            let number = match self.numbers.get(event.user) {
                Some(number) => *number,
                None => *self.numbers.entry(event.user.into()).or_insert(next),
            };
            self.users.push(number);
        }
        Ok(())
    }

    /// What was found so far.
    pub fn report(&self) -> Report {
        let row = |(contender, scores): (&Contender<'_>, &Vec<f64>)| Row {
            name: contender.name.clone(),
            auc: auc(&self.labels, scores).ok(),
            gauc: gauc(&self.users, &self.labels, scores).ok().map(|gauc| gauc.value),
            log_loss: log_loss(&self.labels, scores).ok(),
        };
        Report {
            predicted: self.labels.len() as u64,
            positive: self.labels.iter().filter(|positive| **positive).count() as u64,
            users: self.numbers.len() as u64,
            without_vector: self.without_vector,
            rows: self.contenders.iter().zip(&self.scores).map(row).collect(),
        }
    }
}
