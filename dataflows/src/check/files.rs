//! What a job reads from the disk: folders, inputs, secrets, models, weights.

use super::{Finding, Subject};
use crate::config::raw::{EncoderKind, GeneratorKind};
use ictflow_connectors::files::STDIN;
use ictflow_connectors::secret::Secret;
use ictflow_operators::ict::Versions;
use std::path::{Path, PathBuf};

/// The state folder exists, or can be made: as far as can be told without writing.
pub(super) fn state(subject: &mut Subject) -> Vec<Finding> {
    let state = subject.config.state();
    let key = || format!("state {}", state.display());
    let found = state.ancestors().map(|path| if path == Path::new("") { Path::new(".") } else { path });
    for folder in found {
        match std::fs::metadata(folder) {
            Ok(found) if !found.is_dir() => {
                let problem = format!("{} isn't a folder", folder.display());
                return vec![Finding::new(key(), problem, "set state to a folder")];
            }
            Ok(found) if found.permissions().readonly() => {
                let problem = format!("{} can't be written", folder.display());
                return vec![Finding::new(key(), problem, "set state to a folder that this user may write")];
            }
            Ok(_) => return Vec::new(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return vec![Finding::new(
                    key(),
                    error.to_string(),
                    "set state to a folder that this user may write",
                )];
            }
        }
    }
    Vec::new()
}

/// The input files are regular ones that this user may read.
pub(super) fn inputs(subject: &mut Subject) -> Vec<Finding> {
    let Some(files) = subject.config.files() else { return Vec::new() };
    let named = [
        ("--interactions", Some(&files.interactions)),
        ("--items", Some(&files.items)),
        ("--candidates", files.candidates.as_ref()),
    ];
    let mut findings = Vec::new();
    for (option, path) in named {
        let Some(path) = path.filter(|path| *path != Path::new(STDIN)) else { continue };
        findings.extend(readable(option, path));
    }
    findings
}

/// Whether a file can be read, without reading it.
fn readable(key: &str, path: &Path) -> Option<Finding> {
    let problem = match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => "it isn't a regular file".to_owned(),
        Ok(_) => match std::fs::File::open(path) {
            Ok(_) => return None,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let problem = format!("{}: {problem}", path.display());
    Some(Finding::new(key, problem, "check the path and that this user may read the file"))
}

/// Every secret that the configuration names, by key. A connector with a secret gets a line here.
fn named_secrets(subject: &Subject) -> Vec<(&'static str, &Secret)> {
    let raw = subject.config.raw();
    let mut named = Vec::new();
    if let Some(kafka) = &raw.topics.kafka {
        named.extend(kafka.security.password.as_ref().map(|s| ("topics.kafka.security.password", s)));
        named.extend(kafka.security.key_password.as_ref().map(|s| ("topics.kafka.security.key_password", s)));
    }
    if let Some(registry) = &raw.registry {
        named.extend(registry.password.as_ref().map(|s| ("registry.password", s)));
        named.extend(registry.token.as_ref().map(|s| ("registry.token", s)));
    }
    if let Some(openai) = &raw.generator.openai {
        named.extend(openai.api_key.as_ref().map(|s| ("generator.openai.api_key", s)));
    }
    if let Some(qdrant) = &raw.qdrant {
        named.extend(qdrant.api_key.as_ref().map(|s| ("qdrant.api_key", s)));
    }
    named
}

/// Every secret can be read, and by its owner alone.
pub(super) fn secrets(subject: &mut Subject) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, secret) in named_secrets(subject) {
        if let Some((file, mode)) = secret.open_to_others() {
            let problem = format!("{} has the mode {mode:o}: others may use it", file.display());
            findings.push(Finding::new(key, problem, "chmod 600 it"));
        }
        // What it holds is dropped at once.
        if let Err(error) = secret.resolve(key) {
            findings.push(Finding::of(key, error));
        }
    }
    findings
}

/// The files of certificates can be read.
pub(super) fn certificates(subject: &mut Subject) -> Vec<Finding> {
    let Some(kafka) = &subject.config.raw().topics.kafka else { return Vec::new() };
    let security = &kafka.security;
    let files: [(&str, &Option<PathBuf>); 3] = [
        ("topics.kafka.security.ca_file", &security.ca_file),
        ("topics.kafka.security.certificate_file", &security.certificate_file),
        ("topics.kafka.security.key_file", &security.key_file),
    ];
    files.into_iter().filter_map(|(key, path)| readable(key, path.as_ref()?)).collect()
}

/// The encoder loads.
pub(super) fn encoder(subject: &mut Subject) -> Vec<Finding> {
    match subject.config.encoder() {
        Ok(encoder) => {
            subject.encoder = Some((encoder.id().to_owned(), encoder.width()));
            Vec::new()
        }
        Err(error) => {
            let kind = subject.config.raw().encoder.kind;
            let key = if kind == EncoderKind::Minilm { "encoder.folder" } else { "encoder.kind" };
            vec![Finding::of(key, error)]
        }
    }
}

/// The ICT weights load, and take texts of the encoder's width.
pub(super) fn weights(subject: &mut Subject) -> Vec<Finding> {
    let Some((_, width)) = subject.encoder else { return Vec::new() };
    match subject.config.weights(width, false) {
        Ok(weights) => {
            subject.vector = Some(weights.shape().d);
            let Some(directory) = subject.config.directory() else { return Vec::new() };
            let key = "ict.directory";
            match directory.shadow() {
                Ok(shadow) => match Versions::from(weights).stand_beside(shadow) {
                    Ok(()) => Vec::new(),
                    Err(error) => {
                        vec![Finding::new(key, error.to_string(), "name another file in its file shadow")]
                    }
                },
                Err(error) => vec![Finding::of(key, error)],
            }
        }
        Err(error) => {
            let directory = subject.config.directory().is_some();
            vec![Finding::of(if directory { "ict.directory" } else { "ict.weights" }, error)]
        }
    }
}

/// The generator's model loads.
pub(super) fn generator(subject: &mut Subject) -> Vec<Finding> {
    let key = match subject.config.raw().generator.kind {
        GeneratorKind::Local => "generator.model",
        _ => "generator",
    };
    subject.config.generators().err().map(|error| Finding::of(key, error)).into_iter().collect()
}
