//! The reader of rules and of choose_args (weight sets).
//!
//! Only the form is checked here, as in `parse`. Rules of the multi-step-retry kind (Ceph 19)
//! are refused by name.

use super::lexer::{Lexer, ParseError, Place, Problem, Token};
use super::parse::limit;
use crate::crush::{
    BUCKETS_MAX, CHOOSE_ARGS_DEFAULT, ChooseArg, ChooseArgs, ITEMS_MAX, Mode, RULE_STEPS_MAX, RuleKind, Step,
    WEIGHT_SET_POSITIONS_MAX,
};

/// What rules have that do not say for how many replicas they are (Ceph 17 and later).
const SIZES_DEFAULT: (u8, u8) = (1, 10);

/// Ceph prints the id -1 of the default set as an unsigned number; some versions read only this.
pub(super) const CHOOSE_ARGS_DEFAULT_TEXT: &str = "18446744073709551615";

/// A step with names in place of ids.
pub(super) enum RawStep<'t> {
    Take { item: Token<'t>, class: Option<Token<'t>> },
    Choose { leaf: bool, mode: Mode, num: i32, type_name: Token<'t> },
    Plain(Step),
}

/// A rule's block.
pub(super) struct RawRule<'t> {
    pub id: u32,
    pub name: String,
    pub kind: RuleKind,
    pub min_size: u8,
    pub max_size: u8,
    pub steps: Vec<RawStep<'t>>,
    pub place: Place,
}

/// Reads a rule from its name on.
pub(super) fn rule<'t>(lexer: &mut Lexer<'t>) -> Result<RawRule<'t>, ParseError> {
    let place = lexer.peek().place;
    let name = match lexer.peek().text {
        "{" => String::new(),
        _ => lexer.word("the name of a rule, or `{`")?.text.to_owned(),
    };
    lexer.expect("{", "`{` after the name of a rule")?;
    let mut id = None;
    let mut kind = None;
    let (mut min_size, mut max_size) = SIZES_DEFAULT;
    let mut steps = Vec::new();
    let expected = "`id`, `type`, `min_size`, `max_size`, `step` or `}`";
    while !lexer.accept("}") {
        let key = lexer.word(expected)?;
        match key.text {
            "id" | "ruleset" => id = Some(lexer.word("a rule id")?.number("a rule id from 0 up")?),
            "type" => {
                let word = lexer.word("the type of the rule")?;
                kind = Some(match word.text {
                    "replicated" | "1" => RuleKind::Replicated,
                    "erasure" | "3" => RuleKind::Erasure,
                    _ => return Err(word.unknown("type of rule", "use replicated or erasure")),
                });
            }
            "min_size" => min_size = lexer.word("a size")?.number("a size from 0 to 255")?,
            "max_size" => max_size = lexer.word("a size")?.number("a size from 0 to 255")?,
            "step" => {
                steps.push(step(lexer)?);
                limit(key, "number of steps", steps.len(), RULE_STEPS_MAX)?;
            }
            _ => return Err(key.unexpected(expected)),
        }
    }
    let missing = |what| {
        let name = if name.is_empty() { "(without a name)" } else { &name };
        place.error(Problem::Missing { block: "rule", name: name.to_owned(), what })
    };
    Ok(RawRule {
        id: id.ok_or_else(|| missing("`id`"))?,
        kind: kind.ok_or_else(|| missing("`type`"))?,
        name,
        min_size,
        max_size,
        steps,
        place,
    })
}

fn step<'t>(lexer: &mut Lexer<'t>) -> Result<RawStep<'t>, ParseError> {
    let word = lexer.word("a step")?;
    let mut tries = || lexer.word("a number")?.number("a number from 0 up");
    let plain = match word.text {
        "emit" => Step::Emit,
        "set_choose_tries" => Step::SetChooseTries(tries()?),
        "set_chooseleaf_tries" => Step::SetChooseleafTries(tries()?),
        "set_choose_local_tries" => Step::SetChooseLocalTries(tries()?),
        "set_choose_local_fallback_tries" => Step::SetChooseLocalFallbackTries(tries()?),
        "set_chooseleaf_vary_r" => Step::SetChooseleafVaryR(tries()?),
        "set_chooseleaf_stable" => Step::SetChooseleafStable(tries()?),
        "take" => {
            let item = lexer.word("the name of a bucket or device")?;
            let class = match lexer.accept("class") {
                true => Some(lexer.word("the name of a device class")?),
                false => None,
            };
            return Ok(RawStep::Take { item, class });
        }
        "choose" | "chooseleaf" => {
            let expected = "`firstn` or `indep`";
            let mode = lexer.word(expected)?;
            let mode = match mode.text {
                "firstn" => Mode::Firstn,
                "indep" => Mode::Indep,
                _ => return Err(mode.unexpected(expected)),
            };
            let num = lexer.word("how many to choose")?.number("how many to choose")?;
            lexer.expect("type", "`type`")?;
            let type_name = lexer.word("the name of a type")?;
            return Ok(RawStep::Choose { leaf: word.text == "chooseleaf", mode, num, type_name });
        }
        _ => {
            let hint = "use take, choose, chooseleaf, emit or a set_ step of Ceph up to 18";
            return Err(word.unknown("step", hint));
        }
    };
    Ok(RawStep::Plain(plain))
}

/// Reads a set of choose_args from its id on.
pub(super) fn choose_args(lexer: &mut Lexer<'_>) -> Result<ChooseArgs, ParseError> {
    let word = lexer.word("the id of the choose_args")?;
    let id = match word.text {
        CHOOSE_ARGS_DEFAULT_TEXT => CHOOSE_ARGS_DEFAULT,
        _ => word.number("a pool id, or -1 for the default set")?,
    };
    lexer.expect("{", "`{` after the id of choose_args")?;
    let mut args = Vec::new();
    while !lexer.accept("}") {
        let start = lexer.peek();
        lexer.expect("{", "`{` before `bucket_id`, or `}`")?;
        lexer.expect("bucket_id", "`bucket_id`")?;
        let bucket_id = lexer.word("the id of a bucket")?.number("a bucket id from -1 down")?;
        let mut arg = ChooseArg { bucket_id, weight_set: Vec::new(), ids: Vec::new() };
        if lexer.accept("weight_set") {
            lexer.expect("[", "`[` after `weight_set`")?;
            while !lexer.accept("]") {
                let position = lexer.peek();
                let weights = list(lexer, |token| token.weight())?;
                arg.weight_set.push(weights);
                let max = WEIGHT_SET_POSITIONS_MAX;
                limit(position, "number of positions", arg.weight_set.len(), max)?;
            }
        }
        if lexer.accept("ids") {
            arg.ids = list(lexer, |token| token.number("an id"))?;
        }
        lexer.expect("}", "`weight_set`, `ids` or `}`")?;
        args.push(arg);
        limit(start, "number of choose_args of a set", args.len(), BUCKETS_MAX)?;
    }
    Ok(ChooseArgs { id, args })
}

/// `[ entry entry ... ]`
fn list<'t, T>(
    lexer: &mut Lexer<'t>,
    entry: impl Fn(Token<'t>) -> Result<T, ParseError>,
) -> Result<Vec<T>, ParseError> {
    lexer.expect("[", "`[`")?;
    let mut entries = Vec::new();
    while !lexer.accept("]") {
        let token = lexer.word("a number or `]`")?;
        entries.push(entry(token)?);
        limit(token, "number of entries", entries.len(), ITEMS_MAX)?;
    }
    Ok(entries)
}
