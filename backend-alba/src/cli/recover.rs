//! `alba recover`: rebuilds a lost NSM and says what was found, what is missing and what is doubtful.

use std::path::PathBuf;

use backend_alba::osd::Place;
use backend_alba::recovery::{Contested, Incomplete};
use backend_alba::server::Address;
use backend_alba::{
    Config, Elsewhere, EtcdPlace, OsdGiven, Recovered, Result, give_up_the_rest, recover,
};
use clap::Args;
use serde_json::json;

use super::tls::TlsOptions;

/// Lines of each list for people; `--json` has all.
const SHOWN: usize = 20;

#[derive(Args)]
pub struct RecoverOptions {
    /// The backend's data directory; its NSM is gone.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The cluster of etcd that is to have the metadata, empty; may be repeated. Without any, RocksDB in the data directory.
    #[arg(long = "nsm", value_name = "etcd://HOST:PORT[,HOST:PORT]...[/PREFIX]")]
    nsm: Vec<EtcdPlace>,
    /// An OSD of the backend, a directory or URL; may be repeated: all that are left. Without any and without ASDs, `osd` in
    /// the data directory.
    #[arg(long = "osd", value_name = "DIR|URL[,node=NAME][,label=NAME]...")]
    osds: Vec<OsdGiven>,
    /// An ASD of the backend, HOST:PORT or unix:PATH; may be repeated.
    #[arg(long = "asd", value_name = "ADDRESS")]
    asds: Vec<Address>,
    /// Give up what an earlier recovery could not rebuild: files without a manifest may be removed again.
    #[arg(long)]
    give_up_the_rest: bool,
    /// One JSON document instead of a report.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tls: TlsOptions,
}

pub(super) async fn run(options: RecoverOptions) -> Result<()> {
    let tls = options.tls.load()?;
    let RecoverOptions { data_dir, nsm, osds, asds, give_up_the_rest: give_up, json, .. } = options;
    let elsewhere = asds.into_iter().map(|address| Elsewhere::at(Place::Asd(address))).collect();
    let config = Config { nsm, elsewhere, tls, ..Config::new(data_dir) };
    let config = config.with_osds(osds);
    if give_up {
        give_up_the_rest(config).await?;
        if json {
            println!("{}", json!({"given_up": true}))
        } else {
            println!("given up")
        }
        return Ok(());
    }
    let recovered = recover(config).await?;
    if json {
        println!("{:#}", as_json(&recovered))
    } else {
        print!("{}", report(&recovered))
    }
    Ok(())
}

fn as_json(recovered: &Recovered) -> serde_json::Value {
    let outcome = &recovered.outcome;
    let incomplete = |i: &Incomplete| json!({"namespace": i.namespace, "name": i.name, "found": i.found, "needed": i.needed});
    let contested = |c: &Contested| {
        let others: Vec<String> = c.others.iter().map(ToString::to_string).collect();
        let chosen = c.chosen.to_string();
        json!({"namespace": c.namespace, "name": c.name, "chosen": chosen, "others": others})
    };
    let damaged: Vec<_> = recovered
        .damaged
        .iter()
        .map(|(osd, file)| json!({"osd": osd.to_string(), "fragment": file.to_string()}))
        .collect();
    json!({
        "alba_id": recovered.id.to_string(),
        "osds": recovered.osds,
        "preset": recovered.preset,
        "namespaces": recovered.namespaces,
        "objects": outcome.objects.len(),
        "files": outcome.files,
        "used_files": outcome.used_files,
        "lacking": outcome.lacking.iter().map(|(namespace, name)| {
            json!({"namespace": namespace, "name": name})
        }).collect::<Vec<_>>(),
        "incomplete": outcome.incomplete.iter().map(incomplete).collect::<Vec<_>>(),
        "contested": outcome.contested.iter().map(contested).collect::<Vec<_>>(),
        "damaged": damaged,
    })
}

fn report(recovered: &Recovered) -> String {
    let (outcome, preset) = (&recovered.outcome, &recovered.preset);
    let mut out = format!(
        "backend {}: {} objects in {} namespaces, from {} of {} files on {} OSDs\n",
        recovered.id,
        outcome.objects.len(),
        recovered.namespaces,
        outcome.used_files,
        outcome.files,
        recovered.osds
    );
    let lacking = outcome.lacking.iter().map(|(namespace, name)| format!("{namespace}/{name}"));
    list(&mut out, "objects have fewer fragments than they should", lacking);
    let incomplete = outcome.incomplete.iter().map(|i| {
        format!("{}/{}: {} fragments found, {} needed", i.namespace, i.name, i.found, i.needed)
    });
    list(&mut out, "objects are not complete on these OSDs and are not back", incomplete);
    let contested = outcome.contested.iter().map(|c| {
        let others = c.others.len();
        format!("{}/{}: {}, not {others} older", c.namespace, c.name, c.chosen)
    });
    list(&mut out, "names had several complete objects; the newest is back", contested);
    let damaged = recovered.damaged.iter().map(|(osd, file)| format!("{file} on OSD {osd}"));
    list(&mut out, "files do not say what they are", damaged);
    out += &format!(
        "\
An object that was deleted shortly before may be back, if its files were still there.
Which preset a namespace had is lost: all have {preset:?} now; presets are the built-in ones.
A namespace without objects is not back.
Files that no manifest names stay until `alba recover --give-up-the-rest`.
"
    );
    out
}

fn list(out: &mut String, what: &str, lines: impl ExactSizeIterator<Item = String>) {
    let count = lines.len();
    if count == 0 {
        return;
    }
    *out += &format!("{count} {what}:\n");
    lines.take(SHOWN).for_each(|line| *out += &format!("  {line}\n"));
    if count > SHOWN {
        *out += &format!("  and {} more (--json has all)\n", count - SHOWN);
    }
}
