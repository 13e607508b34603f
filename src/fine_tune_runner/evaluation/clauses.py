"""How a sentence is built: where it turns, where a denial in it ends, what draws a conclusion or defines.

Single patterns beside the table of rules.py, matched in the same way. Data, no logic.
"""

from __future__ import annotations

import re

# Points back: what the sentence before said is the cause.
POINTS_BACK = re.compile(
    r"^(?:and )?(?:that|this)(?: here| alone)?(?: is|'s) (?:exactly |precisely |indeed |"
    r"clearly )?(?:why\b|(?:your|the) (?:root |real |actual |whole |"
    r"sole |only |underlying )*(?:cause|culprit|reason|problem|explanation|diagnosis)\b|what (?:causes|"
    r"breaks)\b)|^(?:that|this|which) (?:explains|causes|is what)\b|"
    r"^there(?: is|'s) (?:your|the) (?:cause|culprit|reason|problem|explanation)\b",
    re.I,
)
# What stands after a name as its verdict: "X: ruled out", a table's row, a key of YAML.
VERDICT_NO = re.compile(
    r"\W{0,3}\s*[:=|\u2013\u2014-]+\s*(?:\w+\s)?(?:ruled out|nothing|none|n/a|does not|do not|is not|"
    r"absent from|out|no|not|nope|false|excluded|ok|okay|fine|checked|healthy|"
    r"negative|rejected|dismissed|unlikely|innocent|refuted|\u2717|\u274c)(?!\w)",
    re.I,
)
VERDICT_YES = re.compile(
    r"\W{0,3}\s*[:=|\u2013\u2014-]+\s*(?:confirmed|yes|true|broken|the culprit|found|guilty|positive|"
    r"(?:this is |that is |that's )?the (?:root )?cause|\u2713|\u2714|\u2705)(?!\w)",
    re.I,
)
# A place or platform a sentence speaks of; whether the question does too is looked up.
OTHER_PLACE = re.compile(
    r"\b(?:for|in|on|of|hurts?|breaks?|affects?|concerns?) (?:the|your|our|their) "
    r"(?!this|same|whole|entire|live|main|current)((?:\w+ )(?:store|shop|market|feed|brand|domain|"
    r"property|site|app|campaigns?)|"
    r"(?:google )?ads|meta|ga4|tiktok|pinterest|linkedin|bing|microsoft ads|facebook|instagram|whatsapp)"
    r"(?: (?:tag|account|pixel|conversions?))?\b",
    re.I,
)
# Doubts wherever they stand, also among the words of a name: "the linker could be missing".
MODAL = re.compile(
    r"(?:can|could|may|might|would|should|perhaps|probably|possibly|likely|maybe|used to|formerly)\b",
    re.I,
)
# What makes the sentence one about a name: a definition, or a predicate other than that it is the cause.
DEFINES = re.compile(
    r"\s+(?:too|as well|likewise)\b|['\u2018\u201d]?[:,]?\s*(?:that |this |it )?(?:is|are|"
    r"'s) (?:an? (?!common|clear|plain|case)|when\b|what (?:you|we|one|people) (?:call|get)|where\b|"
    r"the (?:name|term))|"
    r"['\u2018\u201d]?,?\s*(?:is|was|are|were|has been|had been) (?:one\b|among\b|some\b|just\b|only\b|"
    r"merely\b|all\b|how\b|my\b|his\b|their\b|"
    r"what (?!(?:breaks|causes|stops|prevents|blocks|happens|goes|keeps|makes|does|is|was|you have|"
    r"we have)\b)|"
    r"the (?!(?:\w+ ){0,2}(?:cause|culprit|reason|problem|issue|fault|explanation|answer|diagnosis|one|"
    r"point|"
    r"matter|trouble|bug|error|verdict|finding)\b))|\s*(?:means|describes|refers to|occurs|happens when|"
    r"arises)\b",
    re.I,
)
# Denies a name from between its words: "WP Rocket's delay is switched off for gtm.js".
UNDONE = re.compile(
    r"\b(?:is|was|are|were|been) (?:\w+ )?(?:disabled|deactivated|switched off|turned off|ruled out|excluded|"
    r"fixed|corrected)\b",
    re.I,
)
# Ties what stands before it to its cause.
EXPLAINED = re.compile(r"\bbecause\b|\b(?:due|owing) to\b|\bcaused by\b", re.I)
# Draws the conclusion from what was said, and tells nothing else.
CONCLUDES = re.compile(
    r"^(?:hence|thus|therefore|that(?: is|'s) (?:all|why|where|how|what|it|your)|case closed|"
    r"simple as that)\b",
    re.I,
)
# Said with a negator, meant as a plain yes; taken out before negation is looked for.
AFFIRMING = re.compile(
    r"\b(?:(?:there is |there's )?(?:no|without(?: a)?|beyond(?: a)?) (?:doubt|question)(?: that|"
    r" about it)?,?|not only|nothing but|nothing else than|nothing other than|none other than|"
    r"no other than|"
    r"can not be anything (?:else )?(?:but|than)|do n't doubt that|do not doubt that|no mistake,?|"
    r"(?:there is |there's )?no way (?:that )?(?:this|it|that)(?: is| was)? ?(?:n't|not)|"
    r"if ever there was one|(?:no|not a|rules out) (?:maybes?|guess(?:es)?)\b|"
    r"(?:not (?:only|just|merely|a mere)|more than|no mere) (?:an? )?(?:mere )?(?:suspicion|assumption|guess|"
    r"possibility|hunch|theory|hypothesis)|"
    r"no (?:need|reason|room) (?:to|for) (?:guess|doubt)\w*)",
    re.I,
)
# Says what a thing named before it is for, and doubts nothing: "nothing that would write it".
RELATIVE_MODAL = re.compile(
    r"(?<!,)(?<!says)(?<!means) that (?:would|should|could|might)(?: have)? "
    r"(?!(?:be|have been|explain|account|cause|mean|lead|result|fit|produce)\w*\b)",
    re.I,
)
# A statement of its own after what was looked at: "I looked at the address, and all events have ...".
RESUMES = re.compile(
    r"[,;:] (?:and |but |where |there )?[^,;:]*\b(?:is|are|was|were|has|have|had|shows?|gives?|carr(?:y|"
    r"ies))\b",
    re.I,
)
# How long or how much: a doubt about that is none about the cause.
AMOUNT = re.compile(
    r"\bhow (?:long|many|much|soon|often)\b|\b\d+ (?:seconds?|minutes?|hours?|days?|weeks?)\b", re.I
)
# Says yes to the question before it, or to the opinion told in the same sentence.
YES = re.compile(r"^(?:yes|yep|exactly|correct|indeed|confirmed|that one)\s*(?:[.:;,!\u2013\u2014]|$)", re.I)
CONFIRMS = re.compile(
    r"\b(?:(?:is|was|are|were|'re|'s) (?:quite |perfectly |absolutely )?right(?: about (?:it|that|this))?|"
    r"(?:i|we) (?:can |do |now )*confirm(?:ed)? (?:it|that|this)|(?:i|we) (?:(?:can|do|only|fully|"
    r"also) )*agree)\s*(?:[.;!]?$|,(?! (?:but|though|except|only|however)\b))",
    re.I,
)
# Where a sentence turns: what stands before and after is judged by itself.
TURN = re.compile(
    r"(?:,? \b(?:but|however|whereas|yet|nevertheless|nonetheless|instead it is|sondern|aber|pero|sino|"
    r"mais)\b)|,(?= (?:it|this|that)(?: is|'s| was) (?!n't|not|all\b))",
    re.I,
)
# What is dismissed before a comma and "it's": "it's not the trigger, it's the inline script".
DISMISSES = re.compile(
    r"\b(?:it|this|that)(?:'s| is| was)(?: not| ?n't)\b|^neither\b.*\b(?:involved|it|at fault)\b", re.I
)
# Explains a part and leaves the rest: "explains scroll, but not purchases".
PARTLY = re.compile(r"\b(?:explains?|accounts? for)\b[^.;]*\b(?:but|yet) (?:not|n't|hardly)\b", re.I)
# Says of something unnamed that it is in order, or out of the question.
CLEARED = re.compile(
    r"\b(?:is|was|are|were|has been|have been|stays?|remains?) (?:\w+ly |both |all )?"
    r"(?:ruled out|excluded|eliminated|dismissed|off the table|innocent|irrelevant|unrelated|impossible|"
    r"fine|healthy|intact|in order|all right|okay|ok|out)\b(?! of(?! the question)| dated)|"
    r"\bno more\b(?! than)",
    re.I,
)
# Granted before the turn to the cause, or after it; taken out.
CONCEDED = re.compile(
    r"\b(?:it is true that|it's true that|admittedly|granted|to be fair|although|though|even though|"
    r"despite|"
    r"in spite of|no matter|even if)\b[^,;]*(?:[,;]|$)",
    re.I,
)
# One of several: "X, or the theme", "X or Y", "X / Y"; not "X, or rather", not "neither X or".
BESIDE_OR = re.compile(
    r"[,;]\s*or\b(?! (?:rather|more (?:precisely|exactly)|in other|put|to be|so\b|as))", re.I
)
OR_BEFORE = re.compile(r"(?:\bor(?: an?| the| that| your)?|\s/)\s*$", re.I)
OR_AFTER = re.compile(
    r"\s*(?:or\b|/\s)(?! (?:rather|more|less|in|on|at|after|before|by|with|when|until|not|so)\b)", re.I
)
# Between the members of a list, and what makes a member a statement of its own.
MEMBERS = re.compile(r"\s*[,;/+]\s+(?:and |or |plus )?|\s/\s|\s\+\s")
STATES = re.compile(
    r"\b(?:is|are|was|were|has|have|had|do|does|did|gets?|goes|fires?|stays?|works?|n't|not|nothing|"
    r"never)\b",
    re.I,
)
# Where a clause ends for a denial that came before (a list "not X, Y and Z" stays one clause at "and").
CLAUSE = re.compile(r"[=-]>|\u2192|[,;:()\u2013\u2014]|\s-\s|\b(?:so|which|while)\b", re.I)
# Where it ends for a denial that comes after.
CLAUSE_AFTER = re.compile(
    CLAUSE.pattern
    + r"|\s\+\s|\b(?:and|or|whose|where|who|because|rather than|instead of|as opposed to|unlike|not (?:due|"
    r"because|the|a|an|your))\b",
    re.I,
)
# Deniers whose reach ends at the comma: "rather than X, ...".
ENDS_AT_COMMA = re.compile(
    r"rather|instead|opposed|unlike|contrary|except|apart|other than|regardless|far from", re.I
)
# A negator right before a commitment, with nothing but filling words between: "not really because of".
DENIED_COMMIT = re.compile(
    r"(?:\b(?:not|n't|never|no|neither|nor|nicht|non|hardly|wrong)\b|\bn't)"
    r"(?:\s+(?:the|a|an|your|this|any|really|simply|just|actually|merely|all|at all|necessarily|primarily|"
    r"being|be|been|that|it|truly|in fact|even|always|its?|here|only|solely|entirely|die|la|el|le|l|"
    r"kein\w*|"
    r"means|way|circumstances|account|root|real|"
    r"actual|true|underlying|main|primary|key|of|part|to do with))*\s*$",
    re.I,
)
# What follows from the cause: it may be negated or hedged without touching the cause.
CONSEQUENCE = re.compile(
    r"(?:,|;|\s-|\u2013|\u2014)?\s*\b(?:so (?:that )?|which (?:means|is why|leads|makes|explains)|"
    r"meaning(?: that)?|"
    r"therefore|hence|that is why|that's why|this is why|as a result|with the result|and thus|thus|"
    r"and (?:therefore|so|as a result))\b",
    re.I,
)
# An instruction that is about the diagnosis, not about the fix.
DISCARDS = re.compile(r"(?:rule out|forget|leave|ignore|do not|do n't|put|set)\b", re.I)
# A later sentence that ties something to the symptom by pointing back at what was named before.
TAKES_UP = re.compile(
    r"(?:and )?(?:both|these|those|together|this|that|which|so|hence|thus|therefore)\b", re.I
)
# A main clause that denies or leaves open all that follows its "that": "there is no sign that ...".
FRAME = re.compile(
    r"^\W*(?:[^,;:]{0,40},\s*)?(?:(?:so|and|but|well|no|then|hence)\b[ ,]*)*(?:"
    r"(?:it|there|this|i|we|you|one|they|nobody|nothing|no one|none)\b[^,;:]{0,40}?\b(?:not|n't|no|"
    r"never|hardly|"
    r"doubt\w*|exclud\w+|disprov\w+|refut\w+|dismiss\w*|rul\w+ out|myth|"
    r"little|hardly anything|once|imagine|conceiv\w+|opposite|legend|wrong|false|untrue|"
    r"mistake\w*|"
    r"error|misunderstanding|rumou?r|absurd|impossible|far from)\b"
    r"(?! (?:secret|wonder|surprise|coincidence|accident|mystery|doubt|question)\b)[^,;:]{0,30}?"
    r"|(?:nobody|nothing|no one|none)\b[^,;:]{0,40}?"
    r"|(?:just |now |let us |let's )?(?:imagine|suppose|pretend|picture|say|assume)\b(?: now)?"
    r")\s*\bthat\b(?! (?:is|was|alone|said)\b)",
    re.I,
)
# A short sentence of its own that takes back, doubts or hands to somebody else what was said before it.
TAKES_BACK = re.compile(
    r"^\W*(?:(?:but|however|yet|or|at least|though|although|still|then again|sorry|sadly|alas|only|well|"
    r"and|now)"
    r"\b[, ]*)*(?:"
    r"(?:this|that|it|all (?:of )?(?:this|that)|which)\b(?!(?: is|'s) (?:no longer|more than)\b)"
    r"[^,;:]{0,24}?(?:\b(?:false|wrong|untrue|"
    r"mistaken|incorrect|"
    r"(?:was|were|used to be) (?:so|true|right|the case|like that)|"
    r"(?:has|have) (?:\w+ )?been (?:fixed|solved|resolved|repaired|corrected|refuted|disproved)|"
    r"(?:a |my |only |mere )+(?:guess|theory|assumption|hypothesis|suspicion|hunch|idea|possibility)|"
    r"speculation|guesswork|one of (?:\w+ )*(?:possibilities|candidates|causes|ideas|options))\b|"
    r"\b(?:does|do|did|can|could|would|is|was) ?(?:n't|not) (?:\w+ )?(?:explain|account|fit|hold|match|"
    r"right|true|"
    r"so|it|the case|confirmed|proven|certain|the (?:\w+ )?(?:cause|reason|problem|explanation))\b)"
    r"|(?:i|we)\b[^,;:]{0,24}?\b(?:(?:ruled|rule|would rule|excluded?|disproved?|withdr[ae]w|retract|doubt|"
    r"dismissed) (?:\w+ )?(?:out|this|that|it)\b|(?:can|could|was|am|were|are) ?(?:n't|"
    r"not) (?:\w+ )?(?:confirm|"
    r"prove|verify|reproduce|sure|certain|able|convinced|persuaded)\b|(?:was|were|am) (?:wrong|mistaken)\b|"
    r"take (?:that|this|it) back|would ?(?:n't|not) (?:rule|exclude))"
    r"|so (?:i|we|he|they|you|the \w+|your \w+) (?:\w+ )?(?:thought|think|thinks|said|says|believed?|"
    r"believes?)\b"
    r"|(?:that|this) (?:is|was) (?:just |only |merely )?what (?:i|we|you|they|he|she|(?:your|the|my|our) \w+)"
    r"(?:'d| would)?(?: have)? (?:think|thought|say|said|wr[io]te|written|believe|claim|assume|hope)[sd]?"
    r"|(?:the|your|our|my) (?:\w+ )?(?:logs?|data|numbers?|figures?|tests?|evidence|preview|network tab|"
    r"facts) "
    r"(?:contradict|disprove|refute|deny|say otherwise|shows? otherwise|speaks? against|says? otherwise)"
    r"|(?:in the end |finally )?(?:it|this) (?:is|was|could be|may be|might be) something "
    r"(?:else|different|other)\b|something else\b"
    r"|(?:your|the) \w+ (?:says?|thinks?|claims?|believes?) so\b"
    r"|[^,;:]{0,40}\bone (?:explanation|possibility|option|cause|idea|theory) (?:among|of)\b"
    r"|(?:this|that|it) (?:can|could|has to|must) be (?:excluded|ruled out|dismissed|discarded)\b"
    r"|(?:this|that|it) (?:was|is) (?:only |just )?my (?:first|initial|original) \w+"
    r"|[^.?!]{0,60}\b(?:speaks? against (?:it|this|that)|(?:proved?|shows?|showed|suggests?) (?:the opposite|"
    r"otherwise))\b"
    r"|not so\b|wrong (?:ticket|client|account|shop|answer)\b)",
    re.I,
)
# Counts possible causes off, before or without deciding among them.
COUNTED = re.compile(
    r"\b(?:two|three|four|five|several|a few|both|many|various|different|number)\s(?:\w+ ){0,2}(?:things?|"
    r"faults?|causes?|reasons?|explanations?|ways?|faces?|candidates?|possibilities|readings?|suspects?|possible|"
    r"likely|options?)\b|\bthat leaves\b[^.;:]*(?:,|\bor\b)|^(?:of|among) (?:the|these)",
    re.I,
)
# Closes a letter and says nothing of the case.
COURTESY = re.compile(
    r"^\W*(?:and |please |just |so )*(?:"
    r"(?:i |we )?hope (?:this|that|it) (?:helps|is clear|answers)|"
    r"(?:(?:let|tell|write|write to|call|ask|drop|come back to) (?:me|us)|ask|shout|get in touch)\b"
    r"[^.;,]{0,12}\b(?:if|when|once|should|how) "
    r"(?:you (?:(?:would |'d )?(?:need|want|like) (?:a |any |some |more |me|us|help)|"
    r"have (?:any |more |further )*(?:questions?|doubts?|trouble|problems?)|"
    r"get stuck|run into|are (?:stuck|done))|"
    r"(?:anything|something) (?:is unclear|remains unclear|goes wrong)|it (?:goes|went))|"
    r"(?:if|should) you (?:have (?:any |more |further )*questions?|get stuck|run into|need (?:help|a hand))|"
    r"feel free|do(?: not| n't) hesitate|(?:(?:i am|i'm|we are|we're) )?(?:happy|glad) to help|good luck|"
    r"(?:best|kind|many) (?:regards|wishes|thanks))\b",
    re.I,
)
# Heads a part that tells what was looked at and is not the cause.
ASIDE = re.compile(
    r"^(?:why )?(?:[^:.?!]{0,60}\b(?:(?:(?:is|are|was|were|do|does|did) ?(?:not|n't)|not to) (?:\w+ )?(?:"
    r"apply|involved|it|to blame|responsible|guilty|relevant|fit)|ruled out|excluded|dismissed|eliminated|"
    r"discarded|(?:out of|off) the (?:question|table|list)|on the way|innocent|alternatives)\b[^:.?!]{0,60}|"
    r"what (?:it|this|that) (?:is|was) ?(?:not|n't)|"
    r"(?:what|things|anything|everything) else\b[^:.?!]{0,40}|"
    r"(?:other|wrong|false|rejected) (?:\w+ )?(?:suspects|ideas|leads|explanations|suspicions|theories|"
    r"candidates|possibilities))\s*:",
    re.I,
)
# Speaks of the diagnosis also where the answer already says what to do; other doubts there are of the advice.
OF_DIAGNOSIS = re.compile(
    r"\b(?:causes?|caused|reasons?|culprit|explanations?|explains?|diagnosis|verdict|faults?|suspect\w*|"
    r"suspicion|guess\w*|theory|hypothesis|blame|wrong|mistaken|doubt\w*|problem|issue|because|due to|"
    r"sure|certain|know|tell|say|whether|decide|judge|confirm\w*|prove\w*|possib\w+|perhaps|"
    r"maybe|probabl[ey]|likely|"
    r"still|else|help(?:s|ed)?)\b|"
    r"\b(?:may|might|could|can) (?:\w+ )?(?:be|have been|come|stem|lie)\b|"
    r"\bif (?:it|this|that|they|so|not|nothing)\b",
    re.I,
)
# Hedges that are conditions of advice where the answer says what to do.
CONDITION = re.compile(r"if|unless|either|in case|provided|whether|would|suggest|\w+'d.*", re.I)
# Heads the part that gives the verdict.
VERDICT_PART = re.compile(
    r"^(?:so |now )?(?:what (?:it|this|that) (?:is|was|really is|comes down to)|what(?: is|'s)? (?:remains|"
    r"left|happens|happened|goes wrong|(?:i|we) found(?: instead)?)|(?:our |my |the )?(?:actual |real |"
    r"root )?(?:results?|verdict|conclusion|findings?|diagnosis|cause|explanation|reason|upshot|outcome|"
    r"bottom line))\s*:",
    re.I,
)
# A doubt of the diagnosis that stands although the answer has gone on to what to do.
DOUBTS_DIAGNOSIS = re.compile(
    r"\b(?:if|should|unless)\b.*\b(?:something|anything) else\b|"
    r"\b(?:cause|reason|culprit|explanation|fault|problem)s?\b[^,;.]{0,20}\b(?:may|might|could)\b|"
    r"\b(?:may|might|could) (?:\w+ )?(?:be|have been) (?:\w+ ){0,2}(?:cause|reason|culprit|"
    r"explanation|fault)\b",
    re.I,
)
