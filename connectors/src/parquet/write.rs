//! Writes a training set, a row group at a time.

use super::Row;
use super::schema::{MESSAGE, VECTORS, VERSION};
use crate::{Error, Result};
use ictflow_schemas::example::{HistoryRecord, Served};
use ictflow_schemas::item::Item;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a group.
pub const GROUP: usize = 16_384;

const HINT: &str = "name a file in a folder that can be written, with room for it";

/// How every file of Parquet begins.
const MAGIC: &[u8] = b"PAR1";

/// A file under way. Dropped before it is finished, it leaves nothing.
pub struct Writer {
    path: PathBuf,
    part: PathBuf,
    file: SerializedFileWriter<File>,
    rows: Vec<Row>,
    written: u64,
    finished: bool,
}

impl Writer {
    /// Begins a file. One that was left under way is overwritten, one that is finished only by
    /// [`Writer::finish`].
    ///
    /// # Errors
    /// `Fatal` where it can't be made, or the name is a folder's or another kind of file's.
    pub fn create(path: &Path) -> Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let context = || format!("write {}", path.display());
        if let Some(other) = other_kind(path) {
            return Err(Error::fatal(context(), other, "name a new file, or a training set to be replaced"));
        }
        let vectors = ColumnPath::new(VECTORS.map(str::to_owned).into());
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_column_dictionary_enabled(vectors, false)
            .set_key_value_metadata(Some(vec![KeyValue::new(VERSION.0.to_owned(), VERSION.1.to_owned())]))
            .build();
        let file = File::create(&part).map_err(|error| Error::fatal(context(), error, HINT))?;
        let file = parse_message_type(MESSAGE)
            .and_then(|schema| SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)))
            .map_err(|error| Error::fatal(context(), error, HINT))?;
        Ok(Writer { path: path.to_owned(), part, file, rows: Vec::new(), written: 0, finished: false })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// `Fatal` where the disk is full or gone.
    pub fn write(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() >= GROUP { self.flush() } else { Ok(()) }
    }

    /// Ends the file and gives it its name. How many rows it has.
    ///
    /// # Errors
    /// `Fatal` where the disk is full or gone.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        let context = format!("write {}", self.path.display());
        self.file.finish().map_err(|error| Error::fatal(&*context, error, HINT)).map(|_| ())?;
        self.file
            .inner()
            .sync_all()
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .map_err(|error| Error::fatal(context, error, HINT))?;
        self.finished = true;
        Ok(self.written)
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.written += rows.len() as u64;
        let mut group = || -> std::result::Result<(), ParquetError> {
            let mut group = self.file.next_row_group()?;
            columns(&mut group, &rows)?;
            group.close()?;
            Ok(())
        };
        group().map_err(|error| Error::fatal(format!("write {}", self.path.display()), error, HINT))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Whoever fails to write has said why already.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

/// What stands under a name that no training set replaces: a mistyped name must not cost a file.
fn other_kind(path: &Path) -> Option<&'static str> {
    if path.is_dir() {
        return Some("it is a folder");
    }
    let mut begin = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAGIC.len() as u64).read_to_end(&mut begin).ok()?;
    (!begin.is_empty() && begin != MAGIC).then_some("a file that isn't Parquet stands there")
}

type Done = std::result::Result<(), ParquetError>;
type Group<'a> = SerializedRowGroupWriter<'a, File>;

/// All columns of the schema, in its order.
fn columns(group: &mut Group<'_>, rows: &[Row]) -> Done {
    let example = || rows.iter().map(|row| &row.example);
    texts(group, example().map(|e| e.user_id.as_str()))?;
    texts(group, example().map(|e| e.item_id.as_str()))?;
    flat::<Int64Type>(group, example().map(|e| e.event_time).collect())?;
    texts(group, example().map(|e| e.event_id.as_str()))?;
    flat::<Int32Type>(group, example().map(|e| e.label).collect())?;
    flat::<BoolType>(group, example().map(|e| e.implicit).collect())?;
    flat::<Int64Type>(group, example().map(|e| e.label_time).collect())?;
    let text = |get: fn(&HistoryRecord) -> &str| {
        let lists = example().map(move |e| Some(e.history.iter().map(move |entry| bytes(get(entry)))));
        Lists::<ByteArray>::of(0, lists)
    };
    text(|entry| &entry.item_id).write::<ByteArrayType>(group)?;
    text(|entry| &entry.kind).write::<ByteArrayType>(group)?;
    text(|entry| &entry.label).write::<ByteArrayType>(group)?;
    let times = example().map(|e| Some(e.history.iter().map(|entry| entry.event_time)));
    Lists::<i64>::of(0, times).write::<Int64Type>(group)?;
    let item = || rows.iter().map(|row| row.item.as_ref());
    let optional = |group: &mut Group<'_>, get: fn(&Item) -> Option<&str>| {
        optional_texts(group, item().map(|item| item.and_then(get)))
    };
    let list = |group: &mut Group<'_>, get: fn(&Item) -> &Vec<String>| {
        let lists = item().map(|item| item.map(|item| get(item).iter().map(|text| bytes(text))));
        Lists::<ByteArray>::of(1, lists).write::<ByteArrayType>(group)
    };
    optional(group, |item| item.title.as_deref())?;
    optional(group, |item| item.creator.as_deref())?;
    list(group, |item| &item.categories)?;
    list(group, |item| &item.tags)?;
    optional(group, |item| item.description.as_deref())?;
    optional(group, |item| item.language.as_deref())?;
    served(group, rows)
}

/// The columns of what was served, all null where it isn't known.
fn served(group: &mut Group<'_>, rows: &[Row]) -> Done {
    let served = || rows.iter().map(|row| row.example.served.as_ref());
    let defined: Vec<i16> = served().map(|served| i16::from(served.is_some())).collect();
    let epochs: Vec<i64> = served().flatten().map(|served| served.epoch).collect();
    column::<Int64Type>(group, &epochs, Some((&defined, &[])))?;
    optional_texts(group, served().map(|served| served.map(|served| served.ict_weights.as_str())))?;
    optional_texts(group, served().map(|served| served.map(|served| served.vector_kind.name())))?;
    let floats = |group: &mut Group<'_>, get: fn(&Served) -> &Vec<f32>| {
        let lists = served().map(|served| served.map(|served| get(served).iter().copied()));
        Lists::<f32>::of(1, lists).write::<FloatType>(group)
    };
    floats(group, |served| &served.ict)?;
    floats(group, |served| &served.votes)?;
    let ids = |group: &mut Group<'_>, get: fn(&Served) -> &Vec<String>| {
        let lists = served().map(|served| served.map(|served| get(served).iter().map(|id| bytes(id))));
        Lists::<ByteArray>::of(1, lists).write::<ByteArrayType>(group)
    };
    ids(group, |served| &served.demonstrations)?;
    ids(group, |served| &served.neighbours)
}

fn bytes(text: &str) -> ByteArray {
    ByteArray::from(text)
}

/// Writes the next column.
fn column<T: DataType>(group: &mut Group<'_>, values: &[T::T], levels: Option<(&[i16], &[i16])>) -> Done {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has fewer columns than are written".to_owned()))?;
    let (defined, repeated) = levels.unzip();
    column.typed::<T>().write_batch(values, defined, repeated.filter(|levels| !levels.is_empty()))?;
    column.close()
}

fn flat<T: DataType>(group: &mut Group<'_>, values: Vec<T::T>) -> Done {
    column::<T>(group, &values, None)
}

fn texts<'t>(group: &mut Group<'_>, texts: impl Iterator<Item = &'t str>) -> Done {
    flat::<ByteArrayType>(group, texts.map(bytes).collect())
}

fn optional_texts<'t>(group: &mut Group<'_>, texts: impl Iterator<Item = Option<&'t str>>) -> Done {
    let mut values = Vec::new();
    let mut defined = Vec::new();
    for text in texts {
        defined.push(i16::from(text.is_some()));
        values.extend(text.map(bytes));
    }
    column::<ByteArrayType>(group, &values, Some((&defined, &[])))
}

/// Lists as values with levels: what is defined, and which entries go on with a list.
struct Lists<T> {
    values: Vec<T>,
    defined: Vec<i16>,
    repeated: Vec<i16>,
}

impl<T> Lists<T> {
    /// `optional` is 1 where a list may be null, else 0.
    fn of<L: Iterator<Item = T>>(optional: i16, lists: impl Iterator<Item = Option<L>>) -> Self {
        let mut all = Lists { values: Vec::new(), defined: Vec::new(), repeated: Vec::new() };
        for list in lists {
            let before = all.values.len();
            let is_there = list.is_some();
            all.values.extend(list.into_iter().flatten());
            let entries = all.values.len() - before;
            if entries == 0 {
                all.defined.push(if is_there { optional } else { 0 });
                all.repeated.push(0);
            }
            all.defined.extend(std::iter::repeat_n(optional + 1, entries));
            all.repeated.extend((0..entries).map(|entry| i16::from(entry > 0)));
        }
        all
    }

    fn write<D: DataType<T = T>>(self, group: &mut Group<'_>) -> Done {
        column::<D>(group, &self.values, Some((&self.defined, &self.repeated)))
    }
}
