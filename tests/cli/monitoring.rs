//! What ships for Prometheus and Grafana: the alert rules do what their tests say, and every metric that a rule or a
//! panel names is one that a daemon has.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/monitoring")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// Runs `promtool`; says SKIP and gives false where it is not installed.
fn promtool(arguments: &[&str]) -> bool {
    match Command::new("promtool").args(arguments).current_dir(folder()).output() {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "promtool {arguments:?}: {told}");
            true
        }
        Err(error) => {
            let required = std::env::var_os("TREFOIL_TEST_REQUIRE").is_some_and(|value| value == "1");
            assert!(!required, "TREFOIL_TEST_REQUIRE=1, but promtool does not run: {error}");
            println!("SKIP: not installed: promtool (scripts/test installs it)");
            false
        }
    }
}

#[test]
fn alert_rules_are_valid_and_do_what_their_tests_say() {
    let _ = promtool(&["check", "rules", "alerts.yml"])
        && promtool(&["test", "rules", "alerts-test.yml"])
        && promtool(&["check", "config", "prometheus.yml"]);
}

/// Metrics that a text names: words that begin like ours.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("trefoil_") || word.starts_with("process_"));
    let family = |word: &str| {
        let bare = ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end));
        bare.filter(|bare| bare.ends_with("_seconds")).unwrap_or(word).to_owned()
    };
    ours.map(family).collect()
}

/// Every family that the daemons' sources write.
fn written() -> BTreeSet<String> {
    let sources = [
        "nbd/src/metrics.rs",
        "monitor/src/metrics.rs",
        "storage-node/src/daemon/metrics.rs",
        "metrics/src/process.rs",
        "metrics/src/text.rs",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = sources.map(|source| std::fs::read_to_string(root.join(source)).unwrap());
    let quoted = texts.iter().flat_map(|text| text.split('"').filter(|it| !it.contains([' ', '{'])));
    quoted.flat_map(named).collect()
}

#[test]
fn rules_and_panels_name_metrics_that_exist() {
    let written = written();
    assert!(written.len() > 100, "{written:?}");
    for file in ["alerts.yml", "alerts-test.yml", "trefoil-dashboard.json"] {
        let unknown: Vec<String> = named(&text(file)).difference(&written).cloned().collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}, which no daemon writes");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_can_import() {
    let board: Value = serde_json::from_str(&text("trefoil-dashboard.json")).unwrap();
    let variables = board["templating"]["list"].as_array().unwrap();
    let types: Vec<(&str, &str)> =
        variables.iter().map(|it| (it["name"].as_str().unwrap(), it["type"].as_str().unwrap())).collect();
    assert_eq!(types, [("datasource", "datasource"), ("job", "query"), ("volume", "query")]);
    let panels = board["panels"].as_array().unwrap();
    assert!(panels.len() > 30);
    let mut ids = BTreeSet::new();
    let mut places = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: an id twice");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        let place = (at("x"), at("y"), at("x") + at("w"), at("y") + at("h"));
        assert!(place.2 <= 24, "{title} does not fit");
        let free = |other: &(u64, u64, u64, u64)| {
            place.2 <= other.0 || other.2 <= place.0 || place.3 <= other.1 || other.3 <= place.1
        };
        assert!(places.iter().all(free), "{title} lies over another panel");
        places.push(place);
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert!(
                expression.contains("trefoil_")
                    || expression.contains("process_")
                    || expression.contains("up{")
            );
        }
    }
}

#[test]
fn panels_hold_expressions_that_prometheus_reads() {
    // As rules, since promtool checks those; Grafana's variables stand for something there.
    let board: Value = serde_json::from_str(&text("trefoil-dashboard.json")).unwrap();
    let targets =
        board["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    let expressions = expressions
        .map(|it| it.replace("$__rate_interval", "1m").replace("$job", "a").replace("$volume", "b"));
    let rules: Vec<Value> = expressions
        .enumerate()
        .map(|(n, expr)| serde_json::json!({"record": format!("panel:{n}"), "expr": expr}))
        .collect();
    assert!(rules.len() > 50);
    // JSON is YAML.
    let file = tempfile::NamedTempFile::new().unwrap();
    let groups = serde_json::json!({"groups": [{"name": "panels", "rules": rules}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()]);
}
