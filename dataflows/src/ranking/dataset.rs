//! A data set made ready: read, split, with the history of every row and one vector a text.

use super::embeddings::Embeddings;
use super::failed;
use ictflow_connectors::atomic::{Columns, Folder};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ranking::histories::Histories;
use ictflow_operators::ranking::split::{
    Hidden, Proportions, Sample, Split, by_time, leave_one_out, new_items,
};
use ictflow_schemas::Id;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::framing::{Digest, Frame, text_digest};
use ictflow_schemas::history::Label;
use ictflow_schemas::vector::Quantised;
use serde::Serialize;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// L: the most history entries of a sample.
pub const HISTORY: usize = 20;

/// Which rows train, which choose, which test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// By time: the first 80% of the labelled rows train, 10% choose, the last 10% test.
    Time,
    /// By time, with a tenth of the items hidden until validation and another until the test.
    NewItems,
    /// The paper's: each user's last interaction tests, each with one drawn negative. It looks into the future.
    LeaveOneOut,
}

impl Protocol {
    /// Splits a data set.
    ///
    /// # Errors
    /// `Fatal` where a part would be empty or of one class.
    pub fn split(self, data: &Dataset) -> Result<Split> {
        let split = match self {
            Protocol::Time => by_time(data, Proportions::default()),
            Protocol::NewItems => new_items(data, Proportions::default(), Hidden::default()),
            Protocol::LeaveOneOut => leave_one_out(data, Hidden::default().seed),
        };
        split.map_err(|error| Error::fatal("split the data set", error, "see --label and --protocol"))
    }

    /// Its name in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Time => "time",
            Protocol::NewItems => "new-items",
            Protocol::LeaveOneOut => "leave-one-out",
        }
    }
}

/// Where a data set comes from, and how it is read.
#[derive(Clone, Debug)]
pub struct Source {
    /// A folder of atomic files.
    pub folder: PathBuf,
    /// The data set of the folder; its own name's, or the only one, where `None`.
    pub name: Option<String>,
    /// Which column means what.
    pub columns: Columns,
    /// The split.
    pub protocol: Protocol,
    /// A cut of so many users; all where `None`.
    pub users: Option<usize>,
}

impl Source {
    /// Reads the rows and the catalog, and cuts them.
    ///
    /// # Errors
    /// Those of the folder.
    pub fn read(&self) -> Result<Dataset> {
        let mut data = Folder::open(&self.folder, self.name.as_deref())?.read(&self.columns)?;
        if let Some(users) = self.users {
            cut(&mut data, users);
        }
        Ok(data)
    }
}

/// A data set with its split, histories and text vectors.
#[derive(Debug)]
pub struct Prepared {
    /// Rows and catalog.
    pub data: Dataset,
    /// The protocol.
    pub protocol: Protocol,
    /// Train, validation and test.
    pub split: Split,
    /// Of every row.
    pub histories: Histories,
    /// By item number; `None` for an item without a text.
    pub texts: Vec<Option<Quantised>>,
    /// The width of the text vectors.
    pub text_width: usize,
    /// The encoder's id.
    pub encoder: String,
    /// What was read: rows, labels, texts, categories, creators.
    pub digest: Digest,
}

/// A part of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What trains.
    Train,
    /// What chooses.
    Valid,
    /// What is looked at once.
    Test,
}

impl Prepared {
    /// Reads a folder and makes it ready. Text vectors are kept in `cache`.
    ///
    /// # Errors
    /// Those of the folder, of the split and of the encoder.
    pub fn read(source: &Source, encoder: &mut dyn Embed, cache: &Path) -> Result<Self> {
        Prepared::of(source.read()?, source.protocol, encoder, cache)
    }

    /// Makes a data set ready.
    ///
    /// # Errors
    /// Those of the split and of the encoder.
    pub fn of(data: Dataset, protocol: Protocol, encoder: &mut dyn Embed, cache: &Path) -> Result<Self> {
        let split = protocol.split(&data)?;
        let histories = Histories::of(&data, &split.visible, HISTORY);
        let (texts, text_width) = vectors(&data, encoder, cache)?;
        let (encoder, digest) = (encoder.id().to_owned(), contents(&data));
        Ok(Prepared { data, protocol, split, histories, texts, text_width, encoder, digest })
    }

    /// All samples, part after part.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.split.train.iter().chain(&self.split.valid).chain(&self.split.test)
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.split.train.len() + self.split.valid.len() + self.split.test.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of a part.
    pub fn part(&self, part: Part) -> &[Sample] {
        match part {
            Part::Train => &self.split.train,
            Part::Valid => &self.split.valid,
            Part::Test => &self.split.test,
        }
    }

    /// Where a part stands among all samples.
    pub fn range(&self, part: Part) -> Range<usize> {
        let (train, valid) = (self.split.train.len(), self.split.valid.len());
        match part {
            Part::Train => 0..train,
            Part::Valid => train..train + valid,
            Part::Test => train + valid..self.len(),
        }
    }

    /// The users of a part's samples, by number.
    pub fn users(&self, part: Part) -> Vec<u32> {
        self.part(part).iter().map(|sample| self.data.rows()[sample.row as usize].user).collect()
    }

    /// The labels of a part's samples.
    pub fn labels(&self, part: Part) -> Vec<bool> {
        self.part(part).iter().map(|sample| sample.positive).collect()
    }

    /// Whether any item has a text vector.
    pub fn has_texts(&self) -> bool {
        self.texts.iter().any(Option::is_some)
    }

    /// Refuses arms that need texts where there are none.
    ///
    /// # Errors
    /// `Fatal` where no item has a text.
    pub fn need_texts(&self, arm: &str) -> Result<()> {
        if self.has_texts() {
            return Ok(());
        }
        let hint = "name columns of the .item file, such as --title, or leave the arm out by --arms";
        Err(Error::fatal(format!("train the arm {arm}"), "it reads item texts, and no item has one", hint))
    }
}

/// Leaves the rows of so many users: those first in the order of a hash of their ids. It has nothing to do with
/// what they did, and a larger cut holds a smaller one.
pub fn cut(data: &mut Dataset, users: usize) {
    let mut order: Vec<(Digest, Id)> =
        data.users().ids().iter().map(|id| (text_digest(id), id.clone())).collect();
    order.sort_unstable();
    let wanted: HashSet<Id> = order.into_iter().take(users).map(|(_, id)| id).collect();
    data.retain_users(|user| wanted.contains(user));
}

/// The vectors of all items with a text, by item number, and their width.
fn vectors(data: &Dataset, encoder: &mut dyn Embed, cache: &Path) -> Result<(Vec<Option<Quantised>>, usize)> {
    let catalog = data.catalog();
    let items = 0..data.items().len() as u32;
    let digests: Vec<Option<Digest>> = items
        .map(|item| catalog.text(item))
        .map(|text| (!text.is_empty()).then(|| text_digest(text)))
        .collect();
    let wanted: HashSet<Digest> = digests.iter().flatten().copied().collect();
    let mut embeddings = Embeddings::open(cache, encoder, |digest| wanted.contains(digest))?;
    let texts: Vec<(Digest, &str)> = (0..)
        .zip(&digests)
        .filter_map(|(item, digest)| digest.map(|digest| (digest, catalog.text(item))))
        .collect();
    embeddings.fill(&texts, encoder)?;
    let vector = |digest: &Option<Digest>| digest.and_then(|digest| embeddings.get(&digest).cloned());
    Ok((digests.iter().map(vector).collect(), embeddings.width()))
}

/// What decides every figure of a data set: its ids, rows and facts. Weights note it.
pub fn contents(data: &Dataset) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut add = |frame: Frame| {
        hasher.update(&frame.into_bytes());
    };
    add(Frame::new().text("data set").text(&data.kind));
    for names in [data.users(), data.items(), data.catalog().creator_names(), data.catalog().category_names()]
    {
        add(Frame::new().int(names.len() as i64));
        names.ids().iter().for_each(|id| add(Frame::new().text(id)));
    }
    for row in data.rows() {
        let frame = Frame::new().int(row.time).int(i64::from(row.user)).int(i64::from(row.item));
        let frame = frame.int(i64::from(row.number)).text(row.label.word()).int(i64::from(row.engagement));
        // Rows of which this is all leave it out.
        let plain = row.example == (row.label != Label::None) && !row.implicit;
        let label_time = data.label_time(row);
        add(match plain && label_time == row.time {
            true => frame,
            false => frame.int(i64::from(row.example)).int(i64::from(row.implicit)).int(label_time),
        });
    }
    for item in 0..data.items().len() as u32 {
        let catalog = data.catalog();
        let creator = catalog.creator(item).map_or(-1, i64::from);
        let frame = Frame::new().int(i64::from(catalog.exists(item))).text(catalog.text(item)).int(creator);
        add(catalog.categories(item).iter().fold(frame, |frame, category| frame.int(i64::from(*category))));
    }
    Digest(*hasher.finalize().as_bytes())
}

/// A part's name in messages.
impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Train => "training",
            Part::Valid => "validation",
            Part::Test => "the test",
        })
    }
}

/// The number of a thing of a data set that must be there.
pub(crate) fn found(number: Option<u32>, what: &str, id: &str) -> Result<u32> {
    number.ok_or_else(|| failed("replay neighbours", format!("{what} {id} isn't in the data set")))
}
