//! The one binary, `ictflow`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A dead worker leaves its peers waiting for ever: the process goes down whole, and a supervisor
    // starts it again.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    ictflow_dataflows::cli::run()
}
