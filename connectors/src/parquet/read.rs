//! Reads a training set, some rows at a time.

use super::Row;
use super::schema::{Place, place};
use crate::{Error, Result};
use ictflow_schemas::example::{ExampleRecord, HistoryRecord, Served};
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::history::Label;
use ictflow_schemas::item::Item;
use ictflow_schemas::{EARLIEST, LATEST, Millis};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;
use std::fs::File;
use std::path::Path;

/// Rows that are read together.
pub const BATCH: usize = 8_192;

const HINT: &str = "see the format in connectors/src/parquet/mod.rs; `ictflow export` writes it";

/// What is read: the column, of structs in a list the field, and whether it must be there.
const COLUMNS: [(&str, Option<&str>, bool); 24] = [
    ("user_id", None, true),
    ("item_id", None, true),
    ("event_time", None, true),
    ("label", None, true),
    ("event_id", None, false),
    ("implicit", None, false),
    ("label_time", None, false),
    ("history", Some("item_id"), false),
    ("history", Some("kind"), false),
    ("history", Some("label"), false),
    ("history", Some("event_time"), false),
    ("title", None, false),
    ("creator", None, false),
    ("categories", None, false),
    ("tags", None, false),
    ("description", None, false),
    ("language", None, false),
    ("served_epoch", None, false),
    ("served_ict_weights", None, false),
    ("served_vector_kind", None, false),
    ("served_ict", None, false),
    ("served_votes", None, false),
    ("served_demonstrations", None, false),
    ("served_neighbours", None, false),
];

/// How many of them say what was served. They stand last.
const SERVED: usize = 7;

/// Something of each column that is there, in the order of [`COLUMNS`].
type Each<T> = [Option<T>; COLUMNS.len()];

/// A file being read.
pub struct Reader {
    path: String,
    file: SerializedFileReader<File>,
    places: Each<Place>,
    group: usize,
    /// The columns of the group under way, and the rows that it has left.
    open: Option<(Each<Open>, usize)>,
    /// Rows that were given.
    rows: u64,
}

impl Reader {
    /// Opens a file and finds its columns.
    ///
    /// # Errors
    /// `Fatal` where it isn't Parquet, a needed column is missing, or there is no row.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let context = || format!("reading {shown}");
        let file = File::open(path).map_err(|error| Error::fatal(context(), error, "name a Parquet file"))?;
        if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Err(Error::fatal(context(), "the file is empty", HINT));
        }
        let file = SerializedFileReader::new(file)
            .map_err(|error| Error::fatal(context(), error, "name a Parquet file"))?;
        let metadata = file.metadata().file_metadata();
        if metadata.num_rows() == 0 {
            return Err(Error::fatal(context(), "it has no rows", "export more of the topic"));
        }
        let places = find(metadata.schema_descr(), &shown)?;
        Ok(Reader { path: shown, file, places, group: 0, open: None, rows: 0 })
    }

    /// Passes over what was served, for whoever doesn't read it: vectors are most of a file.
    pub fn without_served(mut self) -> Self {
        self.places[COLUMNS.len() - SERVED..].fill(None);
        self
    }

    /// The next rows; none at the end.
    ///
    /// # Errors
    /// `Fatal` where the file is damaged, a needed value is null, or a value isn't what its column holds.
    pub fn rows(&mut self) -> Result<Vec<Row>> {
        while self.open.is_none() {
            if self.group >= self.file.metadata().num_row_groups() {
                return Ok(Vec::new());
            }
            let damaged =
                |error| Error::fatal(format!("reading {}", self.path), error, "is the file damaged?");
            let group = self.file.get_row_group(self.group).map_err(|e: ParquetError| damaged(e))?;
            self.group += 1;
            let mut columns: Each<Open> = std::array::from_fn(|_| None);
            for ((open, place), (name, ..)) in columns.iter_mut().zip(self.places).zip(COLUMNS) {
                let Some(place) = place else { continue };
                let reader = group.get_column_reader(place.column).map_err(damaged)?;
                *open = Some(Open { name, place, reader });
            }
            let left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            self.open = (left > 0).then_some((columns, left));
        }
        let Some((columns, left)) = &mut self.open else { return Ok(Vec::new()) };
        let (count, first) = (BATCH.min(*left), self.rows);
        let mut read: Each<Read> = std::array::from_fn(|_| None);
        for (read, column) in read.iter_mut().zip(columns) {
            *read = column.as_mut().map(|column| column.read(&self.path, count)).transpose()?;
        }
        *left -= count;
        if *left == 0 {
            self.open = None;
        }
        self.rows += count as u64;
        assemble(&At { path: &self.path, first }, count, read)
    }
}

/// Finds the columns.
fn find(schema: &SchemaDescriptor, file: &str) -> Result<Each<Place>> {
    let fields: Vec<&str> = schema.root_schema().get_fields().iter().map(|field| field.name()).collect();
    let mut places: Each<Place> = [None; COLUMNS.len()];
    for (found, (name, field, needed)) in places.iter_mut().zip(COLUMNS) {
        *found = place(schema, file, name, field)?;
        let missing = |detail| Err(Error::fatal(format!("reading {file}"), detail, HINT));
        match field {
            None if needed && found.is_none() => {
                return missing(format!("there is no column {name} among {}", fields.join(", ")));
            }
            Some(field) if fields.contains(&name) && found.is_none() => {
                return missing(format!("the structs of {name} have no field {field}"));
            }
            _ => {}
        }
    }
    Ok(places)
}

/// A column of the group under way.
struct Open {
    name: &'static str,
    place: Place,
    reader: ColumnReader,
}

/// Values of some rows.
struct Read {
    name: &'static str,
    place: Place,
    values: Values,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

enum Values {
    Texts(Vec<ByteArray>),
    Numbers(Vec<i64>),
    Floats(Vec<f32>),
}

impl Open {
    /// Reads the next rows of the column.
    fn read(&mut self, path: &str, rows: usize) -> Result<Read> {
        fn all<T: DataType>(
            reader: &mut ColumnReaderImpl<T>,
            rows: usize,
        ) -> std::result::Result<(Vec<T::T>, Vec<i16>, Vec<i16>, usize), ParquetError> {
            let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
            let mut read = 0;
            while read < rows {
                let (records, ..) =
                    reader.read_records(rows - read, Some(&mut defined), Some(&mut repeated), &mut values)?;
                if records == 0 {
                    break;
                }
                read += records;
            }
            Ok((values, defined, repeated, read))
        }
        let numbers = |(values, defined, repeated, read)| (Values::Numbers(values), defined, repeated, read);
        let read = match &mut self.reader {
            ColumnReader::ByteArrayColumnReader(reader) => {
                all(reader, rows).map(|(values, d, r, read)| (Values::Texts(values), d, r, read))
            }
            ColumnReader::Int64ColumnReader(reader) => all(reader, rows).map(numbers),
            ColumnReader::Int32ColumnReader(reader) => all(reader, rows).map(|(values, d, r, read)| {
                numbers((values.into_iter().map(i64::from).collect(), d, r, read))
            }),
            ColumnReader::BoolColumnReader(reader) => all(reader, rows).map(|(values, d, r, read)| {
                numbers((values.into_iter().map(i64::from).collect(), d, r, read))
            }),
            ColumnReader::FloatColumnReader(reader) => {
                all(reader, rows).map(|(values, d, r, read)| (Values::Floats(values), d, r, read))
            }
            ColumnReader::DoubleColumnReader(reader) => all(reader, rows).map(|(values, d, r, read)| {
                (Values::Floats(values.into_iter().map(|value| value as f32).collect()), d, r, read)
            }),
            _ => return Err(self.fault(path, "it holds neither texts, numbers nor booleans".to_owned())),
        };
        let (values, defined, repeated, read) = read.map_err(|error| self.fault(path, error.to_string()))?;
        if read != rows {
            return Err(self.fault(path, format!("it ends after {read} of {rows} rows")));
        }
        Ok(Read { name: self.name, place: self.place, values, defined, repeated })
    }

    fn fault(&self, path: &str, detail: String) -> Error {
        Error::fatal(format!("reading column {} of {path}", self.name), detail, HINT)
    }
}

/// Where a fault is.
struct At<'a> {
    path: &'a str,
    first: u64,
}

impl At<'_> {
    /// A fault of a row, counted from 0 in these rows and from 1 in the file.
    fn fault(&self, name: &str, row: usize, detail: impl Into<String>) -> Error {
        let row = self.first + row as u64 + 1;
        Error::fatal(format!("reading column {name} of {}, row {row}", self.path), detail.into(), HINT)
    }
}

/// One value a row, or none.
fn flat<V>(read: Read, at: &At<'_>, values: Vec<V>, rows: usize) -> Result<Vec<Option<V>>> {
    let Read { name, place, defined, .. } = read;
    if place.entry > 0 {
        return Err(at.fault(name, 0, "it is a list"));
    }
    if place.there == 0 {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    let flat: Vec<Option<V>> =
        defined.iter().map(|level| if *level == place.there { values.next() } else { None }).collect();
    if flat.len() == rows { Ok(flat) } else { Err(at.fault(name, flat.len(), "it ends here")) }
}

/// A list a row, or none.
fn lists<V>(read: Read, at: &At<'_>, values: Vec<V>, rows: usize) -> Result<Vec<Option<Vec<V>>>> {
    let Read { name, place, defined, repeated, .. } = read;
    if place.entry == 0 {
        return Err(at.fault(name, 0, "it is no list"));
    }
    let mut values = values.into_iter();
    let mut lists: Vec<Option<Vec<V>>> = Vec::with_capacity(rows);
    for (level, repeated) in defined.iter().zip(&repeated) {
        if *repeated == 0 {
            // A list of nothing is defined up to where its entries would begin.
            lists.push((*level >= place.entry - 1).then(Vec::new));
        }
        if *level < place.entry {
            continue;
        }
        if *level < place.there {
            return Err(at.fault(name, lists.len().saturating_sub(1), "an entry of the list is null"));
        }
        if let (Some(Some(list)), Some(value)) = (lists.last_mut(), values.next()) {
            list.push(value);
        }
    }
    // A list that can't be null is defined at level 0.
    if lists.len() == rows { Ok(lists) } else { Err(at.fault(name, lists.len(), "it ends here")) }
}

fn text(bytes: &ByteArray) -> std::result::Result<String, String> {
    String::from_utf8(bytes.data().to_vec()).map_err(|_| "it isn't UTF-8".to_owned())
}

impl Values {
    /// Takes them out, and leaves none.
    fn take(&mut self) -> Values {
        std::mem::replace(self, Values::Numbers(Vec::new()))
    }

    /// What they are.
    fn name(&self) -> &'static str {
        match self {
            Values::Texts(_) => "texts",
            Values::Numbers(_) => "integers",
            Values::Floats(_) => "floats",
        }
    }
}

/// The texts of a column.
fn as_texts(read: &mut Read, at: &At<'_>) -> Result<Vec<String>> {
    match read.values.take() {
        Values::Texts(values) => values
            .iter()
            .map(text)
            .collect::<std::result::Result<_, _>>()
            .map_err(|why| at.fault(read.name, 0, why)),
        other => Err(at.fault(read.name, 0, format!("it holds {}, expected texts", other.name()))),
    }
}

/// The integers of a column.
fn as_numbers(read: &mut Read, at: &At<'_>) -> Result<Vec<i64>> {
    match read.values.take() {
        Values::Numbers(values) => Ok(values),
        other => Err(at.fault(read.name, 0, format!("it holds {}, expected integers", other.name()))),
    }
}

/// The floats of a column.
fn as_floats(read: &mut Read, at: &At<'_>) -> Result<Vec<f32>> {
    match read.values.take() {
        Values::Floats(values) => Ok(values),
        other => Err(at.fault(read.name, 0, format!("it holds {}, expected floats", other.name()))),
    }
}

/// What is needed in every row.
fn needed<V>(name: &str, at: &At<'_>, values: Vec<Option<V>>) -> Result<Vec<V>> {
    let mut all = Vec::with_capacity(values.len());
    for (row, value) in values.into_iter().enumerate() {
        all.push(value.ok_or_else(|| at.fault(name, row, "it is null"))?);
    }
    Ok(all)
}

/// Rows from their columns.
fn assemble(at: &At<'_>, count: usize, read: Each<Read>) -> Result<Vec<Row>> {
    let [user, item, event_time, label, event_id, implicit, label_time, read @ ..] = read;
    let [items, kinds, labels, times, read @ ..] = read;
    let [title, creator, categories, tags, description, language, served @ ..] = read;
    let (Some(user), Some(item), Some(event_time), Some(label)) = (user, item, event_time, label) else {
        return Err(at.fault("user_id", 0, "a needed column isn't there"));
    };
    let texts = |mut read: Read| -> Result<Vec<Option<String>>> {
        let values = as_texts(&mut read, at)?;
        flat(read, at, values, count)
    };
    let ids = |read: Read| {
        let name = read.name;
        let ids = needed(name, at, texts(read)?)?;
        match ids.iter().position(String::is_empty) {
            Some(row) => Err(at.fault(name, row, "the id is empty")),
            None => Ok(ids),
        }
    };
    let numbers = |mut read: Read| -> Result<Vec<i64>> {
        let values = as_numbers(&mut read, at)?;
        let name = read.name;
        needed(name, at, flat(read, at, values, count)?)
    };
    let millis = |read: Read| -> Result<Vec<Millis>> {
        let (name, per_milli) = (read.name, read.place.per_milli);
        let milli =
            |(row, time): (usize, i64)| time_of(time, per_milli).map_err(|why| at.fault(name, row, why));
        numbers(read)?.into_iter().enumerate().map(milli).collect()
    };
    let bits = |read: Read| -> Result<Vec<bool>> {
        let name = read.name;
        let bit = |(row, value)| match value {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(at.fault(name, row, format!("it is {other}, neither 0 nor 1"))),
        };
        numbers(read)?.into_iter().enumerate().map(bit).collect()
    };
    let optional_texts = |column: Option<Read>| match column {
        Some(read) => texts(read),
        None => Ok(vec![None; count]),
    };
    let text_lists = |column: Option<Read>| -> Result<Vec<Option<Vec<String>>>> {
        let Some(mut read) = column else { return Ok(vec![None; count]) };
        let values = as_texts(&mut read, at)?;
        lists(read, at, values, count)
    };

    let mut histories = histories((items, kinds, labels, times), at, count)?;
    let (users, items, event_times) = (ids(user)?, ids(item)?, millis(event_time)?);
    let labels = bits(label)?;
    let event_ids = match event_id {
        Some(read) => ids(read)?,
        None => (0..count as u64).map(|row| format!("{:010}", at.first + row)).collect(),
    };
    let implicit = implicit.map(bits).transpose()?.unwrap_or_else(|| vec![false; count]);
    let label_times = match label_time {
        Some(read) => millis(read)?,
        None => event_times.clone(),
    };
    let mut titles = optional_texts(title)?;
    let mut creators = optional_texts(creator)?;
    let mut categories = text_lists(categories)?;
    let mut tags = text_lists(tags)?;
    let mut descriptions = optional_texts(description)?;
    let mut languages = optional_texts(language)?;
    let mut served = self::served(served, at, count)?;

    let mut rows = Vec::with_capacity(count);
    for (row, ((user_id, item_id), event_id)) in users.into_iter().zip(items).zip(event_ids).enumerate() {
        let item = Item {
            title: titles[row].take(),
            creator: creators[row].take(),
            description: descriptions[row].take(),
            language: languages[row].take(),
            ..Item::default()
        };
        let of_lists = (categories[row].take(), tags[row].take());
        // An item that is there has lists, be they empty; a file without such columns has texts at least.
        let is_there = of_lists.0.is_some() || of_lists.1.is_some() || item != Item::default();
        let (categories, tags) = (of_lists.0.unwrap_or_default(), of_lists.1.unwrap_or_default());
        let example = ExampleRecord {
            user_id,
            event_time: event_times[row],
            event_id,
            item_id,
            label: i32::from(labels[row]),
            implicit: implicit[row],
            label_time: label_times[row],
            history: std::mem::take(&mut histories[row]),
            served: served[row].take(),
        };
        if example.label_time < example.event_time {
            let detail = format!("{} is before event_time {}", example.label_time, example.event_time);
            return Err(at.fault("label_time", row, detail));
        }
        rows.push(Row { example, item: is_there.then_some(Item { categories, tags, ..item }) });
    }
    Ok(rows)
}

/// The histories of rows, from items, kinds, labels and times; a null one is empty.
fn histories(
    columns: (Option<Read>, Option<Read>, Option<Read>, Option<Read>),
    at: &At<'_>,
    count: usize,
) -> Result<Vec<Vec<HistoryRecord>>> {
    let (Some(items), Some(kinds), Some(labels), Some(mut times)) = columns else {
        return Ok(vec![Vec::new(); count]);
    };
    let texts = |mut read: Read| {
        let values = as_texts(&mut read, at)?;
        lists(read, at, values, count)
    };
    let (items, kinds, labels) = (texts(items)?, texts(kinds)?, texts(labels)?);
    let (per_milli, values) = (times.place.per_milli, as_numbers(&mut times, at)?);
    let times = lists(times, at, values, count)?;
    let mut histories = Vec::with_capacity(count);
    for (row, (((items, kinds), labels), times)) in
        items.into_iter().zip(kinds).zip(labels).zip(times).enumerate()
    {
        let all = (items.unwrap_or_default(), kinds.unwrap_or_default());
        let more = (labels.unwrap_or_default(), times.unwrap_or_default());
        if [all.1.len(), more.0.len(), more.1.len()].iter().any(|length| *length != all.0.len()) {
            return Err(at.fault("history", row, "its fields have other lengths"));
        }
        let mut history = Vec::with_capacity(all.0.len());
        for (((item_id, kind), label), time) in all.0.into_iter().zip(all.1).zip(more.0).zip(more.1) {
            if Label::of_word(&label).is_none() {
                let detail = format!("label {label:?} is none of positive, negative, none");
                return Err(at.fault("history", row, detail));
            }
            let event_time = time_of(time, per_milli).map_err(|why| at.fault("history", row, why))?;
            history.push(HistoryRecord { item_id, kind, label, event_time });
        }
        histories.push(history);
    }
    Ok(histories)
}

/// What was served with rows, from epochs, weights, kinds, vectors, votes and the two lists of ids. Of a row
/// without an epoch, and of a file without the first three columns, it isn't known; a missing list is empty.
fn served(columns: [Option<Read>; SERVED], at: &At<'_>, count: usize) -> Result<Vec<Option<Served>>> {
    let [epochs, weights, kinds, vectors, votes, demonstrations, neighbours] = columns;
    let (Some(mut epochs), Some(mut weights), Some(mut kinds)) = (epochs, weights, kinds) else {
        return Ok(vec![None; count]);
    };
    let values = as_numbers(&mut epochs, at)?;
    let epochs = flat(epochs, at, values, count)?;
    let texts = |read: &mut Read| as_texts(read, at);
    let (values, named) = (texts(&mut weights)?, texts(&mut kinds)?);
    let (mut weights, kinds) = (flat(weights, at, values, count)?, flat(kinds, at, named, count)?);
    let floats = |column: Option<Read>| -> Result<Vec<Option<Vec<f32>>>> {
        let Some(mut read) = column else { return Ok(vec![None; count]) };
        let values = as_floats(&mut read, at)?;
        lists(read, at, values, count)
    };
    let ids = |column: Option<Read>| -> Result<Vec<Option<Vec<String>>>> {
        let Some(mut read) = column else { return Ok(vec![None; count]) };
        let values = as_texts(&mut read, at)?;
        lists(read, at, values, count)
    };
    let (mut vectors, mut votes) = (floats(vectors)?, floats(votes)?);
    let (mut demonstrations, mut neighbours) = (ids(demonstrations)?, ids(neighbours)?);
    let mut served = Vec::with_capacity(count);
    for (row, (epoch, kind)) in epochs.into_iter().zip(kinds).enumerate() {
        let Some(epoch) = epoch else {
            served.push(None);
            continue;
        };
        let null = |name| at.fault(name, row, "it is null where served_epoch isn't");
        let ict_weights = weights[row].take().ok_or_else(|| null("served_ict_weights"))?;
        let kind = kind.ok_or_else(|| null("served_vector_kind"))?;
        let vector_kind = VectorKind::of(&kind).ok_or_else(|| {
            at.fault("served_vector_kind", row, format!("{kind:?} is neither decoder nor attention"))
        })?;
        served.push(Some(Served {
            epoch,
            ict_weights,
            vector_kind,
            demonstrations: demonstrations[row].take().unwrap_or_default(),
            neighbours: neighbours[row].take().unwrap_or_default(),
            votes: votes[row].take().unwrap_or_default(),
            ict: vectors[row].take().unwrap_or_default(),
        }));
    }
    Ok(served)
}

/// Milliseconds, cut off below one.
fn time_of(time: i64, per_milli: i64) -> std::result::Result<Millis, String> {
    let millis = time.div_euclid(per_milli);
    match (EARLIEST..LATEST).contains(&millis) {
        true => Ok(millis),
        false => Err(format!("time {time} is not within 1900 to 2199, in milliseconds")),
    }
}
