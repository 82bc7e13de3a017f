//! One file of the form, line by line.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The longest line, in bytes.
pub const LINE_BYTES: usize = 16 << 20;

/// The UTF-8 byte order mark.
const MARK: &str = "\u{feff}";

/// How much of a value stands in an error.
const SHOWN_CHARS: usize = 40;

/// What a column's fields are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Token,
    TokenSequence,
    Float,
    FloatSequence,
}

impl Type {
    fn is_sequence(self) -> bool {
        matches!(self, Type::TokenSequence | Type::FloatSequence)
    }
}

#[derive(Debug)]
struct Column {
    name: String,
    form: Type,
}

/// A file with a header.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    reader: BufReader<File>,
    columns: Vec<Column>,
    /// The line at hand.
    bytes: Vec<u8>,
    /// Its fields, as places in the line.
    fields: Vec<Range<usize>>,
    /// The line's number, from 1.
    number: u64,
    /// Whether a row was there.
    any: bool,
}

/// One row.
pub(super) struct Line<'a> {
    table: &'a Path,
    number: u64,
    columns: &'a [Column],
    text: &'a str,
    fields: &'a [Range<usize>],
}

impl Table {
    /// Opens a file and reads its header.
    pub(super) fn open(path: &Path) -> Result<Table> {
        let failed = |error| {
            let context = format!("opening {}", path.display());
            Error::fatal(context, error, "check the path and that this user may read the file")
        };
        // Looked at before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            let context = format!("opening {}", path.display());
            return Err(Error::fatal(context, "it isn't a regular file", "name regular files"));
        }
        let file = File::open(path).map_err(failed)?;
        let mut table = Table {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 18, file),
            columns: Vec::new(),
            bytes: Vec::new(),
            fields: Vec::new(),
            number: 0,
            any: false,
        };
        if !table.fill()? {
            return Err(table.fault("the file is empty", FORM));
        }
        table.columns = header(&table)?;
        Ok(table)
    }

    fn fault(&self, detail: impl ToString, hint: &'static str) -> Error {
        fault(&self.path, self.number, detail, hint)
    }

    /// Reads the next line that isn't empty, without its end, and the places of its fields.
    fn fill(&mut self) -> Result<bool> {
        loop {
            self.bytes.clear();
            let mut limited = (&mut self.reader).take(LINE_BYTES as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.bytes);
            let read = match read {
                Ok(read) => read,
                Err(error) => return Err(self.fault(error, "check the disk")),
            };
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if read > LINE_BYTES {
                return Err(self.fault(format!("the line is longer than {LINE_BYTES} bytes"), FORM));
            }
            if self.bytes.ends_with(b"\n") {
                self.bytes.pop();
                if self.bytes.ends_with(b"\r") {
                    self.bytes.pop();
                }
            }
            if self.number == 1 && self.bytes.starts_with(MARK.as_bytes()) {
                self.bytes.drain(..MARK.len());
            }
            if self.bytes.is_empty() {
                continue;
            }
            self.fields.clear();
            let mut begin = 0;
            for (at, _) in self.bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'\t') {
                self.fields.push(begin..at);
                begin = at + 1;
            }
            self.fields.push(begin..self.bytes.len());
            return Ok(true);
        }
    }

    /// The line at hand as text.
    fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            self.fault(format!("byte {} isn't UTF-8", error.valid_up_to() + 1), "convert the file to UTF-8")
        })
    }

    /// The place of a column.
    pub(super) fn column(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let there: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            let detail = format!("there is no column {name}, but {}", there.join(", "));
            self.fault(detail, "name the columns that this data set has")
        })
    }

    /// The place of a column of one number a row.
    pub(super) fn number(&self, name: &str) -> Result<usize> {
        let place = self.column(name)?;
        if self.columns[place].form.is_sequence() {
            let detail = format!("column {name} is a sequence, and one number is wanted");
            return Err(self.fault(detail, "name a column of the type float or token"));
        }
        Ok(place)
    }

    /// The next row; `None` at the end.
    pub(super) fn line(&mut self) -> Result<Option<Line<'_>>> {
        if !self.fill()? {
            return match self.any {
                true => Ok(None),
                false => Err(self.fault("the file has a header and no rows", "check how it was made")),
            };
        }
        self.any = true;
        if self.fields.len() != self.columns.len() {
            let (fields, columns) = (self.fields.len(), self.columns.len());
            let detail = format!("{fields} fields, and the header has {columns} columns");
            return Err(self.fault(detail, "divide fields by one tab, and let no value hold one"));
        }
        let text = self.text()?;
        Ok(Some(Line {
            table: &self.path,
            number: self.number,
            columns: &self.columns,
            text,
            fields: &self.fields,
        }))
    }
}

/// How the first line should look.
const FORM: &str =
    "the first line names the columns, name:type divided by tabs, with token, token_seq, float or float_seq";

fn fault(path: &Path, line: u64, detail: impl ToString, hint: &'static str) -> Error {
    Error::fatal(format!("reading line {line} of {}", path.display()), detail, hint)
}

/// The columns that the line at hand names.
fn header(table: &Table) -> Result<Vec<Column>> {
    let text = table.text()?;
    let mut columns: Vec<Column> = Vec::new();
    for field in &table.fields {
        let field = &text[field.clone()];
        let Some((name, form)) = field.rsplit_once(':') else {
            return Err(table.fault(format!("column {:?} has no type", shown(field)), FORM));
        };
        let form = match form.trim() {
            "token" => Type::Token,
            "token_seq" => Type::TokenSequence,
            "float" => Type::Float,
            "float_seq" => Type::FloatSequence,
            other => {
                let detail = format!("column {:?} has the type {:?}", shown(name), shown(other));
                return Err(table.fault(detail, FORM));
            }
        };
        if name.is_empty() || columns.iter().any(|column| column.name == name) {
            let detail = format!("a column's name {:?} is empty or there twice", shown(name));
            return Err(table.fault(detail, FORM));
        }
        columns.push(Column { name: name.to_owned(), form });
    }
    Ok(columns)
}

fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARS) {
        None => value.to_owned(),
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}

impl<'a> Line<'a> {
    /// A failure of this line.
    pub(super) fn fault(&self, detail: impl ToString, hint: &'static str) -> Error {
        fault(self.table, self.number, detail, hint)
    }

    /// A field as it stands.
    pub(super) fn text(&self, place: usize) -> &'a str {
        &self.text[self.fields[place].clone()]
    }

    /// A field as an error shows it.
    pub(super) fn shown(&self, place: usize) -> String {
        shown(self.text(place))
    }

    /// An id.
    pub(super) fn id(&self, place: usize) -> Result<&'a str> {
        match self.text(place) {
            "" => Err(self.fault(
                format!("{} is empty", self.columns[place].name),
                "every row needs a user and an item",
            )),
            id => Ok(id),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, place: usize) -> Result<f64> {
        let name = &self.columns[place].name;
        let refuse = |what: String| self.fault(what, "correct or remove the row");
        match self.text(place).trim() {
            "" => Err(refuse(format!("{name} is empty, and a number is wanted"))),
            text => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                Ok(_) => Err(refuse(format!("{name} is {}, not a finite number", shown(text)))),
                Err(_) => Err(refuse(format!("{name} is {:?}, no number", shown(text)))),
            },
        }
    }

    /// The parts of a sequence; of another column the field, if it isn't empty.
    pub(super) fn list(&self, place: usize) -> impl Iterator<Item = &'a str> + use<'a> {
        let separator = self.columns[place].form.is_sequence().then_some(' ');
        self.text(place).split(move |c| Some(c) == separator).filter(|part| !part.is_empty())
    }
}
