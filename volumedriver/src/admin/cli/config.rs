//! `config …`.

use std::path::Path;

use serde_json::{Map, Value, json};
use tonic::Status;
use volumedriver_core::fault::Result;
use volumedriver_proto::management as proto;

use super::args::ConfigCommand;
use super::ask;
use crate::admin::client::Client;
use crate::admin::convert::config_entry;
use crate::config::field::{self, Change};
use crate::config::{Config, Overrides};
use crate::inspect::Report;
use crate::inspect::table::{Align, Table};

pub fn run(command: ConfigCommand, data_dir: Option<&Path>) -> Result<Report> {
    match command {
        ConfigCommand::Check { file } => check(&file, data_dir),
        ConfigCommand::Show { file: Some(file) } => {
            let config = load(&file, data_dir)?;
            let entries: Vec<_> = config.entries.iter().map(config_entry).collect();
            Ok(show(&file.display().to_string(), &entries))
        }
        ConfigCommand::Show { file: None } => ask(data_dir, show_running),
        ConfigCommand::Keys => Ok(keys()),
        ConfigCommand::Reload => ask(data_dir, reload),
    }
}

/// Without a data directory, paths in it are shown with its placeholder.
fn load(file: &Path, data_dir: Option<&Path>) -> Result<Config> {
    Config::load(Some(file), data_dir.unwrap_or(Path::new("DATA_DIR")), &Overrides::default())
}

fn check(file: &Path, data_dir: Option<&Path>) -> Result<Report> {
    load(file, data_dir)?;
    let shown = file.display().to_string();
    Ok(Report { human: format!("{shown}: ok\n"), json: json!({ "file": shown, "ok": true }) })
}

async fn show_running(mut client: Client) -> Result<Report, Status> {
    let running = client.show_config(proto::ShowConfigRequest {}).await?.into_inner();
    Ok(show(&running.file, &running.entries))
}

fn show(file: &str, entries: &[proto::ConfigEntry]) -> Report {
    let mut table = Table::new(&[
        ("SECTION", Align::Left),
        ("KEY", Align::Left),
        ("VALUE", Align::Left),
        ("SET", Align::Left),
        ("CHANGES", Align::Left),
    ]);
    let mut sections = Map::new();
    for entry in entries {
        let set = if entry.is_default { "default" } else { "explicit" };
        let change = if entry.live { "live" } else { "restart" };
        let cells = [&entry.section, &entry.key, &entry.value].map(Clone::clone);
        table.row(cells.into_iter().chain([set.to_owned(), change.to_owned()]).collect());
        let section = sections.entry(entry.section.clone()).or_insert_with(|| json!({}));
        section[&entry.key] = json!({
            "value": value_of(&entry.value),
            "default": entry.is_default,
            "live": entry.live,
        });
    }
    let heading = if file.is_empty() { String::new() } else { format!("# {file}\n") };
    Report {
        human: format!("{heading}{}", table.render()),
        json: json!({ "file": file, "sections": sections }),
    }
}

/// The JSON of a value that is written as TOML.
fn value_of(text: &str) -> Value {
    let value = toml::from_str::<toml::Table>(&format!("v = {text}"));
    let value = value.ok().and_then(|mut table| table.remove("v"));
    value.and_then(|v| serde_json::to_value(v).ok()).unwrap_or_else(|| text.into())
}

fn keys() -> Report {
    let mut human = String::new();
    let mut list = Vec::new();
    let mut section = "";
    for field in field::ALL {
        if section != field.section {
            section = field.section;
            human.push_str(&format!("{}[{section}]\n", if human.is_empty() { "" } else { "\n" }));
        }
        let live = field.change == Change::Live;
        human.push_str(&format!(
            "{}\n    {}\n    {}; default: {}; changes {}\n",
            field.key,
            field.meaning,
            field.legal,
            field.default_text(),
            if live { "live" } else { "at restart" }
        ));
        list.push(json!({
            "section": field.section,
            "key": field.key,
            "meaning": field.meaning,
            "legal": field.legal.to_string(),
            "default": field.default_text(),
            "live": live,
        }));
    }
    human.push_str("\n[vdisk.NAME] may have the keys of [vpool] from sco_size_bytes on.\n");
    Report { human, json: list.into() }
}

async fn reload(mut client: Client) -> Result<Report, Status> {
    let reply = client.reload_config(proto::ReloadConfigRequest {}).await?.into_inner();
    let document = |changes: &[proto::ConfigChange]| -> Value {
        let one = |c: &proto::ConfigChange| {
            json!({
                "section": c.section,
                "key": c.key,
                "old": value_of(&c.old_value),
                "new": value_of(&c.new_value),
            })
        };
        changes.iter().map(one).collect()
    };
    let human = format!(
        "{}{}",
        describe("applied", &reply.applied),
        describe("needs a restart", &reply.needs_restart)
    );
    let human = if human.is_empty() { "nothing changed\n".to_owned() } else { human };
    let json = json!({
        "applied": document(&reply.applied),
        "needs_restart": document(&reply.needs_restart),
    });
    Ok(Report { human, json })
}

fn describe(what: &str, changes: &[proto::ConfigChange]) -> String {
    let shown =
        |value: &str| if value.is_empty() { "(the vPool's)".to_owned() } else { value.to_owned() };
    let line = |c: &proto::ConfigChange| {
        let (old, new) = (shown(&c.old_value), shown(&c.new_value));
        format!("{what}: [{}] {} = {new} (was {old})\n", c.section, c.key)
    };
    changes.iter().map(line).collect()
}
