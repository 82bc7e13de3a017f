//! The card of a trained ranker: what it is, what it was made of, how good it is and how to make it again.
//! Markdown; its bytes depend on data, options and figures alone.

use super::super::dataset::{HISTORY, Part, Prepared};
use super::files::{File, ICT};
use super::{Figures, Options, Trained};
use ictflow_operators::ranking::split::Proportions;
use std::fmt::Write as _;

/// The card.
pub(super) fn text(prepared: &Prepared, options: &Options, trained: &Trained, files: &[File]) -> String {
    let Options { backbone, arm, told, .. } = options;
    let mut text = format!("# Ranker {} with {}\n\n", backbone.name(), arm.name);
    let vector = match files.iter().any(|file| file.name == ICT) {
        true => ", with the ICT weights that make the vector it reads",
        false => "",
    };
    line(&mut text, &format!("A ranker{vector}, made by ictflow {}.", env!("CARGO_PKG_VERSION")));
    if let Some(date) = &told.date {
        line(&mut text, &format!("Date: {date}."));
    }
    line(&mut text, "");

    line(&mut text, "## Figures\n");
    line(&mut text, "| part | AUC | GAUC | LogLoss |\n| --- | ---: | ---: | ---: |");
    for (part, figures) in [("validation", trained.valid), ("test", trained.test)] {
        let Figures { auc, gauc, log_loss } = figures;
        let gauc = gauc.map_or("-".to_owned(), |gauc| format!("{gauc:.4}"));
        line(&mut text, &format!("| {part} | {auc:.4} | {gauc} | {log_loss:.4} |"));
    }
    let steps = trained.curve.checks.last().map_or(0, |check| check.step);
    line(
        &mut text,
        &format!(
            "\nThe weights are those after {} of {steps} steps, chosen by the validation AUC of {} checks. The test part was \
             scored once, by these. One seed: differences between rankers want `ictflow evaluate`.\n",
            trained.curve.best,
            trained.curve.checks.len()
        ),
    );

    line(&mut text, "## Data\n");
    line(&mut text, "| | |\n| --- | --- |");
    for (name, value) in data(prepared, options) {
        row(&mut text, name, &value);
    }

    line(&mut text, "\n## Model\n");
    line(&mut text, "| | |\n| --- | --- |");
    for (name, value) in model(options) {
        row(&mut text, name, &value);
    }

    line(&mut text, "\n## Files\n");
    line(&mut text, "| file | bytes | SHA-256 |\n| --- | ---: | --- |");
    for File { name, bytes, sha256 } in files {
        line(&mut text, &format!("| `{name}` | {bytes} | `{sha256}` |"));
    }
    if !vector.is_empty() {
        line(
            &mut text,
            &format!(
                "\nA job serves `{ICT}` by `[ict] weights`; its SHA-256 is what features call `ict_weights`."
            ),
        );
    }

    line(&mut text, "\n## Command\n");
    line(&mut text, "```sh");
    line(&mut text, &told.command);
    line(&mut text, "```");
    line(
        &mut text,
        "\nThe same command on the same data gives the same bytes, on one kind of machine and one build.\n\n\
         ## Limits\n\n\
         Figures hold for this data, this split and this label. An id that training didn't have reads a row of zeros, \
         or that of an id with the same hashed row. Text vectors are of the encoder named above and of no other.",
    );
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A row of a table; a bar in a value would end its cell.
fn row(text: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "| {name} | {} |", value.replace('|', "\\|"));
}

fn data(prepared: &Prepared, options: &Options) -> Vec<(&'static str, String)> {
    let Prepared { data, split, .. } = prepared;
    let part = |part: Part| {
        let labels = prepared.labels(part);
        let positive = labels.iter().filter(|label| **label).count();
        format!("{} samples, {:.1}% positive", labels.len(), 100.0 * positive as f64 / labels.len() as f64)
    };
    let texts = prepared.texts.iter().flatten().count();
    let Proportions { train, valid, test } = Proportions::default();
    let begins = split.periods.map_or(String::new(), |periods| {
        format!(
            "; validation begins at {}, the test at {} (milliseconds since 1970)",
            periods.valid_from, periods.test_from
        )
    });
    vec![
        ("source", options.told.source.clone()),
        ("digest (BLAKE3 of ids, rows and item facts)", format!("`{}`", prepared.digest.hex())),
        (
            "size",
            format!(
                "{} rows, {} users, {} items, {texts} with a text",
                data.rows().len(),
                data.users().len(),
                data.items().len()
            ),
        ),
        ("label", options.told.label.clone()),
        ("split", format!("{} {train}/{valid}/{test}{begins}", prepared.protocol.name())),
        ("training", part(Part::Train)),
        ("validation", part(Part::Valid)),
        ("test", part(Part::Test)),
        ("history", format!("the newest {HISTORY} engagements strictly before")),
        ("encoder of texts", format!("`{}`", prepared.encoder)),
    ]
}

fn model(options: &Options) -> Vec<(&'static str, String)> {
    let Options { backbone, arm, sizes, training, seed, rows, .. } = options;
    let given = [
        (true, "ids"),
        (arm.text, "texts"),
        (arm.labels, "the user's own labels"),
        (arm.rate, "the item's own rate"),
        (arm.votes, "the votes of neighbours"),
        (arm.vector.is_some(), "the attention vector over neighbours"),
    ];
    let given: Vec<&str> = given.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect();
    let hidden: Vec<String> = sizes.hidden.iter().map(usize::to_string).collect();
    vec![
        ("backbone", backbone.name().to_owned()),
        ("arm", format!("{}: {}", arm.name, given.join(", "))),
        ("width d", sizes.width.to_string()),
        ("hidden layers, dropout", format!("{}, {}", hidden.join(" and "), sizes.dropout)),
        (
            "rows of the hashed tables",
            format!(
                "user {}, item {}, creator {}, category {}",
                rows.user, rows.item, rows.creator, rows.category
            ),
        ),
        (
            "deviation of the tables' first values",
            sizes.deviation.map_or("the backbone's own".to_owned(), |d| d.to_string()),
        ),
        ("scalars are multiplied by", sizes.scalar_scale.to_string()),
        (
            "optimiser",
            format!(
                "Adam, step {}, coupled weight decay {}, {} samples a step",
                training.learning_rate, training.weight_decay, training.batch
            ),
        ),
        (
            "end",
            format!(
                "{} checks an epoch, after {} without a better one, at most {} epochs",
                training.checks, training.patience, training.epochs
            ),
        ),
        ("seed", seed.to_string()),
    ]
}
