"""The rules of recall as one table: which words commit, hedge, deny, quote or retract. Data, no logic.

Every pattern is matched without case on folded text (phrases.fold: straight apostrophes, `n't` a word of
its own). A rule that is too wide loses a right answer to review; one that is too narrow lets a wrong
answer count, so in doubt a rule is wide.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal[
    "commit",
    "strong",
    "hedge",
    "attributed",
    "general",
    "elsewhere",
    "echo",
    "alternative",
    "plural",
    "retract",
    "fix_heading",
    "fix_step",
    "denier",
    "denied_after",
    "looked",
    "open",
    "refusal",
    "acquits",
    "now",
]

# (kind, what it is for, patterns)
TABLE: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    (
        "strong",
        "says outright which the cause is",
        (
            r"(?:root|real|actual|true|underlying|main|primary|key)[ -]causes?",
            r"(?<!be)(?<!\w)causes? (?:here |of (?:this|that|it|the \w+|your \w+) )?(?:is|was|are|lies)\b",
            r"the (?:sole |only |single |whole )?(?:cause|culprit|diagnosis|explanation)\b",
            r"\b(?:diagnosis|cause|verdict|finding|conclusion)\s*[:=]",
            r"\b(?:is|was|are|were|being|been) caused (?:\w+ly )?by\b",
            r"\b(?:root cause|ursache|grundursache|causa|oorzaak)\b",
        ),
    ),
    (
        "commit",
        "ties the symptom to a cause",
        (
            r"\bbecause\b",
            r"\bcaused? by\b",
            r"\b(?:is|are|was|were) (?:entirely |solely |simply )?(?:due|owing|down) to\b",
            r"\b(?:due|owing|thanks) to\b",
            r"\b(?:the|your|this|one) (?:\w+ )?(?:problem|issue|fault|reason|bug|trouble|error)(?: here)? "
            r"(?:is|was|lies|here)\b",
            r"\b(?:problem|issue|reason|fault|problem statement)\s*:",
            r"\b(?:come|stem|result|originate|arise)s? from\b",
            r"\b(?:boil|come)s? down to\b",
            r"\bexplained by\b",
            r"\bwhat (?:breaks|causes|blocks|stops|prevents|triggers|goes wrong)\b[^,;:]{0,40}?\b(?:is|"
            r"was)\b",
            r"\bthe reasons? (?:for|why|behind|of|that)\b",
            r"\b(?:trace[sd]?|traces back|goes back|go back) (?:back )?to\b",
            r"\b(?:is|are) (?:to blame|at fault|responsible|behind|the culprit|why|what (?:breaks|causes|"
            r"you))\b",
            r"\b(?:explains?|causes|triggers|produces|leads? to|results? in)\b",
            r"\bthis is (?:a |an |the )?(?:clear |classic |textbook |plain )?(?:case|instance|example) of\b",
            r"\b(?:it|this|what you have|what we have|what you see)(?: here)?(?: is|'s)\b",
            r"(?:^|[^\w ] *|\b(?:and|but|so|because|as|for) )that(?: here)?(?: is|'s)\b",
            r"\b(?:you|we|the site|this account)(?: have| has|(?: are| is|'re) (?:facing|dealing with|"
            r"looking at))\b",
            r"\b(?:weil|wegen|porque|parce que|à cause d|omdat|perché|debido a)",
        ),
    ),
    (
        "hedge",
        "does not commit",
        (
            r"\b(?:may|might|could|would|should) (?:well |also |just |still |very well |easily |even )?"
            r"(?:be|have|come|stem|explain|cause|point|result|lie|look|not|indicate|suggest)\b",
            r"\b(?:maybe|perhaps|possibly|probably|presumably|potentially|conceivably|supposedly|"
            r"allegedly|hypothetically|theoretically|plausibl[ey]|likely|likelihood|probability|"
            r"chances?\b|odds\b|apparently|seemingly|arguably)\b",
            r"\b(?:seems?|appears?|looks?|sounds?|feels?|smells?) (?:to|like|as|similar|that)\b",
            r"\b(?:is|'s|was|were) (?:just |rather |almost )?as (?:if|though)\b",
            r"\b(?:smell|reek|whiff|taste|hint|scent)s? of\b",
            r"\b(?:speak|argue)s? for\b|\bhad (?:\w+ )?hoped\b",
            r"\b(?:possibilit(?:y|ies)|candidates?|suspects?|suspicion|suspected|guess|hunch|hypothes[ie]s|"
            r"theory|speculat\w+)\b",
            r"\b(?:possible|potential|plausible) (?:root )?(?:causes?|reasons?|explanations?|culprits?)\b",
            r"\b(?:not|never) (?:\w+ )?(?:sure|certain|clear|confirmed|proven|known|enough)\b",
            r"\b(?:unclear|uncertain|unsure|unknown|unconfirmed|undecided|hard to (?:say|tell)|"
            r"difficult to (?:say|tell)|cannot tell|depends)\b",
            r"(?<!\bi )\b(?:can|could|may|might) (?:also |sometimes |often )?(?:be|have|come|cause|"
            r"lead|result|explain)\b",
            r"\b(?:consistent|compatible|in line|in keeping) with\b",
            r"\b(?:can|could|did|have|has|was|is|am|are) (?:not|n't) (?:yet |be |been |fully |able to )*"
            r"(?:confirm|prove|verif|rule|exclude|test|reproduc|check|say|tell)\w*",
            r"\b(?:bet|betting|lean\w*|inclin\w+|suggests?|indicat\w+|suppose|my money|gut feeling|"
            r"educated|tentative\w*|provisional\w*|preliminary|working assumption|"
            r"for now|pending|remains to be|yet to be|confidence|percent sure|% sure)\b",
            r"\bi (?:would )?(?:think|believe|assume|imagine|suppose|wonder)\b(?! i\b)",
            r"\b(?:(?<!as )if|unless|whether|assuming|provided|in case|should it|either(?!\s*(?:way\b|"
            r"[.,;:!)]|$))|or else|would|vielleicht|"
            r"möglicherweise|wahrscheinlich|quizás|peut-être|probablemente|vermutlich|misschien)\b",
            r"\bpoints? (?:to|at|towards?) (?:either|several|more than)\b",
            r"\b(?:i|we|you|they|he|she|it|that)'d (?!(?:file|\w+ed|been|had|seen|found|gone|done|got|"
            r"taken|made|given|written)\b)",
            r"\bwhy\b[^,;.]*\b(?:not|n't) (?:know|say|tell|clear)|(?:not|n't) (?:know|say|"
            r"tell)(?: \w+)? why\b|\bopen question\b|\b(?:not|n't) (?:\w+ )?un\w+ed\b",
            r"\bworth (?:an?|\w+ing)\b|\b(?:deserv|merit|warrant)(?:e?s|ing)?\b",
            r"\b(?:let us|let's|needs?|have|has|want|remains?|yet) (?:to )?"
            r"(?:check|checking|verify|verifying|investigat\w+|examin\w+|rul\w+)\b",
        ),
    ),
    (
        "attributed",
        "somebody else's opinion",
        (
            r"\b(?:you|they|he|she|(?<!no )(?<!ga4 )client|customer|agency|team|support|developer|shop|"
            r"owner|colleague|consultant|"
            r"vendor|people|many|some|somebody|someone|anybody|others?|one|everybody|everyone|helpdesk|"
            r"forum\w*|documentation|blog\w*|"
            r"google|meta|shopify|tag assistant|pixel helper|ticket|report)\b[^,;:.]{0,20}?"
            r"\b(?:sa(?:y|ys|id)|wr(?:ite|ites|ote)|claim\w*|think\w*|thought|believ\w+|suspect\w*|assum\w+|"
            r"suggest\w*|blam\w+|told|tell\w*|report(?:s|ed)?|mention\w*|describ\w+|insist\w*|argu\w+|"
            r"guess\w*|"
            r"point(?:s|ed) (?:to|at)|diagnos\w+|expect\w*|found|post(?:s|ed)|answer(?:s|ed) that|swear\w*|"
            r"consider\w*|call(?:s|ed) (?:it|this)|named|conclud\w+|fear\w*|"
            r"worr\w+|ask\w*|stat(?:e|es|ed)|not(?:e|es|ed)|convinced|certain|sure|adamant|positive that|"
            r"swore|maintain\w*|parle|spricht|nennt|habla)\b",
            r"\b(?:i|we)(?: \w+)?(?:'d| would)? (?:have )?(?:said|wrote|told|thought|assumed|suspected|"
            r"believed|blamed|named|"
            r"(?:would|'d) (?:\w+ )?(?:have )?(?:said|say|think|thought|blamed|guessed))\b",
            r"\b(?:your|their|his|her|the client's|the agency's) "
            r"(?:\w+ )?(?:guess|suspicion|theory|idea|assumption|hunch|diagnosis|claim|fear|belief)\b",
            r", (?:claims?|says?|thinks?|writes?|believes?|reckons?|insists?|argues?|swears?) (?:the|your|"
            r"an?)\b",
            r"\bmy (?:first|initial|earlier|previous|original) \w+|\b(?:crossed|(?:came|comes?|"
            r"springs?) to) (?:my |our )?mind\b|\bno (?:proof|evidence) (?:for|of) (?:it|that|this)\b",
            r"\b(?:says?|said|writes?|wrote|claims?|thinks?|believes?|insists?|argues?|suggests?|"
            r"swears?|reckons?|suspects?|assumes?|states?|stated|told (?:me|us|you|them)) that\b",
            r"\b(?:has|have|had) it that\b|\bquoted\b",
            r"\b(?:article|guide|manual|post|thread|chapter) (?:on|about)\b",
            r"\b(?:according to|in the (?:words|opinion) of|as (?:you|they|the client) (?:put|say|said))\b",
            r"\b(?:initially|originally|at first|first) (?:\w+ )?(?:blamed|suspected|thought|assumed|"
            r"diagnosed)\b",
        ),
    ),
    (
        "general",
        "what is so in general, elsewhere or of another symptom",
        (
            r"\b(?:commonly|usually|generally|typically|often|sometimes|frequently|in most cases|normally|"
            r"in general|in many (?:cases|shops)|most (?:shops|sites|cases|people|tickets|"
            r"clients|accounts|stores))\b",
            r"\b(?:a|an|one|another|the (?:most |usual ))\s*(?:very |more |most )?"
            r"(?:common|frequent|typical|usual|classic|popular|known)"
            r" (?:root )?(?:cause|reason|culprit|mistake|explanation)\b",
            r"\b(?:symptoms?|signature|pattern|signs?|picture|looks?) (?:is|are) (?:that|those|the one) of\b",
            r"\b(?:symptoms?|signature|pattern|signs?|picture) (?:of|resembles?|matches|is typical|fits|"
            r"overlaps?)\b",
            r"\b(?:resembl\w+|similar to|reminiscent|remind\w*|confus\w+|mistak\w+|mimic\w*|easily taken|"
            r"distinguish\w*|differs? from|compared? (?:to|with)|tempting|obvious suspect|easy to)\b",
            r"\b(?:for (?:example|instance)|such as|e\.g\.)",
            r"\bthe usual\b",
            r"^(?:what (?:is |was )?(?:i |we )?)?(?:checked|fine|ok|okay|healthy|excluded|ruled out|"
            r"in order|passed|"
            r"working|innocent|dismissed|eliminated|considered|rejected|tested|looked at|not the \w+|"
            r"no issue|candidates|suspects|hypotheses|ideas|symptoms?|possible \w+)\b[^:.]{0,24}:",
        ),
    ),
    (
        "elsewhere",
        "another time or another client",
        (
            r"^(?:on|in|at|before|until|prior to|during|for|with|back)\b[^,;:]{0,40}"
            r"\b(?:cause|problem|reason|culprit|issue) was\b",
            r"\bthe days (?:when|of)\b|\bwhen (?:i|we) (?:first|last) \w+",
            r"\b(?:competitors?|had the (?:very )?same|saw the same|a friend|somebody else|elsewhere)\b",
            r"\b(?:on|in) (?:staging|preview|development|the (?:sandbox|demo))\b",
            r"\b(?:last (?:time|week|month|year|spring|summer|autumn|winter|quarter)|previously|formerly|"
            r"in the past|"
            r"back then|(?:an )?earlier (?:case|ticket|incident|problem|issue|outage|version)|years? ago|"
            r"months? ago|weeks? ago|used to|"
            r"another (?:client|account|shop|site|store)|other (?:clients?|accounts?|shops?|sites?|stores?)|"
            r"(?:old|previous|former|earlier|sister|staging|test|second|demo) "
            r"(?:client|account|shop|site|store|container|property|theme|version|setup|domain|project)|"
            r"different (?:client|account|shop|site|store)|in (?:january|february|march|april|june|july|"
            r"august|"
            r"september|october|november|december)|already (?:been )?(?:fixed|solved|resolved|repaired|"
            r"corrected)|in v\d+)\b",
            r"^(?:before|until|prior to|when|back)\b[^;]*\b(?:was|were|had|did)\b",
            r"\b(?:was|were|got|has been|have been) (?:then |since |later )?"
            r"(?:corrected|fixed|repaired|solved|resolved|put right)\b|\bthe (?:old|former|other) pages?\b",
            r"\b(?:separate|unrelated) (?:app|issue|problem|matter|question|thing|topic|tag|system|"
            r"account|site)\b",
            r"\b(?:until|till) (?:last|then|recently|yesterday|\d|january|february|march|april|may|june|july|"
            r"august|september|october|november|december|\w+day)\b",
            r"\b(?:was|were) (?:our|my|the|their) (?:\w+ )?(?:verdict|finding|diagnosis|answer|conclusion)\b",
            r"\b(?:last|from|of|in) (?:the )?(?:spring|summer|autumn|winter|january|february|march|"
            r"april|june|july|august|september|october|november|december)\b",
        ),
    ),
    (
        "echo",
        "tells the question again",
        (
            r"^(?:so |ok |okay |thanks[^,]*, |i see[^,]*, |understood[^,]*, )?"
            r"you(?:'re| are)? (?:see|say|report|notice|describe|observe|mention|ask|write|told|wonder|"
            r"seeing|saying)",
            r"\b(?:your (?:question|message|description|words)|the (?:question|ticket|symptom|complaint)) "
            r"(?:is|was|says|reads|mentions|about)\b",
        ),
    ),
    (
        "alternative",
        "a second cause beside the first",
        (
            r"\b(?:also|alternatively|equally|another|just as|or (?:it|maybe|perhaps|possibly|else)|"
            r"could as well|on top|additionally|in addition|second)\b",
        ),
    ),
    (
        "plural",
        "says that there is more than one cause, named or not",
        (
            r"(?<!no )(?<!not )(?<!without )\b(?:second|another|other|further|additional|"
            r"third) (?:root |real )?causes?\b",
            r"\bcauses (?:here )?(?:are|were)\b",
            r"\balso (?:due|because|caused|down to|comes? from|stems? from)\b",
            r"(?<!not )\b(?:two|three|four|several|multiple|many|various) (?:\w+ )?(?:causes|reasons|"
            r"culprits)\b",
        ),
    ),
    (
        "retract",
        "takes back what was said",
        (
            r"^(?:edit|update|erratum|later)\s*:",
            r"^(?:oh |ah |but )?(?:wait|hold on|hang on|actually|hmm+|sorry|oops|on reflection)\b",
            r"\b(?:checked again|looked again|double-checked and|on (?:a )?(?:closer|second) (?:look|"
            r"inspection|reading))\b",
            r"\b(?:everyone|everybody|they|you|he|she|both) (?:is|are|was|were) (?:all |both )?(?:wrong|"
            r"mistaken)\b",
            r"\b(?:(?:i|we) (?:withdraw|retract|take (?:that|it|this) back)|(?:another|a different) "
            r"(?:story|matter)|not what (?:happens|happened|i see|we see|the (?:data|logs?) (?:say|"
            r"show)\w*)|scrap (?:that|it|this)|"
            r"scratch that|on second thoughts?|i was wrong|i stand corrected|correction|no, wait|wait, no|"
            r"(?:strike|cross) (?:that|it|this)(?: out)?|forget that|take that back|disregard)\b",
            r"\b(?:that|this|it|which|the above|this diagnosis|that diagnosis|this answer|this statement|"
            r"this claim|this explanation|that explanation|all of this|none of (?:this|that|it))"
            r"(?: statement| claim)? (?:is|was|'s|would be|turned out)(?: \w+ly)? "
            r"(?:(?:wrong|false)(?! (?:to|that|in)\b)|incorrect|untrue|mistaken|a lie|nonsense|unlikely|"
            r"doubtful|refuted|"
            r"not (?:the case|true|correct|right|it|so|accurate|what|the (?:root )?(?:cause|reason|"
            r"problem)))",
            r"\bi (?:may|might|could) be (?:wrong|mistaken)\b",
            r"\b(?:or so it seems|take (?:this|it) with|just kidding|opposite is true|"
            r"(?:which|that|this) (?:i|we) (?:doubt|reject|exclude|rule out))\b",
            r"\b(?:not|no longer) (?:the case|true|correct)\b",
            r"\b(?:this|that|it) (?:is|was|would be) (?:at least )?(?:how|what|the|so|true)\b[^.?!]{0,30}\b"
            r"(?:textbooks?|nine (?:in|of|out of|times)|(?:most|many) (?:such|tickets|cases|shops|sites|"
            r"clients|accounts|stores|people))\b",
            r"\b(?:i am|i'm|we are) not (?:sure|certain|convinced)\b",
            r"\b(?:is|was|be|been|are) (?:ruled out|excluded|off the table|refuted|disproved|dismissed)\s*$",
        ),
    ),
    (
        "fix_heading",
        "from here on the answer says what to do",
        (
            r"^(?:\d+[.)] )?(?:the |recommended |suggested |proposed |quick |how to |what to )?"
            r"(?:fix|solution|remed(?:y|ies)|resolution|repair|do|next steps?|action items?|"
            r"actions?(?! (?:is|are))|steps|to do|todo|"
            r"recommendations?|verification|verify|prevention|how to fix|what to do|fix it|fix this|plan|"
            r"(?:two |three |the )?ways? out|cure|(?:our |my )?(?:advice|suggestion|proposal|recommendation)|"
            r"for your \w+|lösung|"
            r"solución|behebung|correction steps|correctif|oplossing)(?: (?:it|this|now|next|steps))?\s*"
            r"(?:[:.]|$|\s-\s|\u2013|\u2014|\bis\b)",
            r"^(?:\d+[.)] )?(?:what|how) (?:to \w+|(?:i|we|you|your \w+) (?:\w+ )?(?:suggest|recommend|"
            r"propose|advise|should|must|can|needs?|(?:have|has) to)|(?:needs|is|has|have)(?: to be| to)? "
            r"(?:done|needed|required|change|happen)|(?:needs|is|has|have) to be changed)\b[^:.?!]{0,30}:",
            r"^(?:to|in order to) (?:fix|solve|repair|correct|resolve|remedy|verify|confirm|prevent)\b",
        ),
    ),
    (
        "fix_step",
        "an instruction",
        (
            r"^(?:\d+[.)] |then |next,? |first,? |finally,? |please |so |now )*"
            r"(?:add|remove|publish|set|keep|create|move|call|use|check|make|ensure|verify|send|push|disable|"
            r"enable|install|delete|drop|pass|map|load|guard|register|list|configure|connect|exclude|"
            r"renew|replace|update|open|go to|test|compute|normali[sz]e|hash|forward|generate|correct|"
            r"rule out|compare|look|confirm|wait|inspect|have|let|try|change|reinstall|switch|start|stop|"
            r"kill|fix|rename|press|hit|put|pick|strip|point|align|take|build|submit|trim|choose|tell|"
            r"ask|give|turn|select|extend|adjust|restore|allow|clear|preserve|swap|rewrite|leave|"
            r"read|write|fetch|attach|include|provide|ignore|join|pull|insert|supply|convert|declare|define|"
            r"fill|copy|paste|listen|fire|enter|track|bring|get|tick|untick|flip|append|initiali[sz]e|wire|sum|"
            r"adapt|bin|wipe|type|hand|settle|format|place|guard|store (?=the|it|them|both|each)|do)\b"
            r"(?! cause)(?![-_./]\w)",
            r"\bplease\b",
            r"(?<!not )(?<!nothing )(?<!what )\b(?:solves|fixes|cures|repairs|heals|mends) (?:it|this|"
            r"that|both|everything|the)\b",
            r"\b(?:you|we|they) (?:should|must|need to|have to|can|could|ought to)\b",
        ),
    ),
    (
        "denier",
        "denies the cause that follows it in the clause",
        (
            r"\b(?:rather than|instead of|as opposed to|unlike|except|other than|apart from|far from|"
            r"anything but|contrary to|nothing to do with|unrelated to|independent of|regardless of|"
            r"rul(?:e|es|ed|ing) out|exclud(?:e|es|ed|ing)|eliminat\w+|dismiss\w*|discard\w*|disprov\w+|"
            r"refut\w+|"
            r"contradict\w*|doubt\w*|hardly|unlikely|wrong to|mistaken\w*|lack of evidence|speaks against|"
            r"argues against|evidence against|against|free of|cleared|myth|sworn|instead|"
            r"with the exception of|except(?:ing|ed)|save for|barring|aside from|everything but|all but|"
            r"short of|leaving out|ruled_out|excluded)\b",
            r"\b(?:more|less) than (?:just )?(?:an?|the)\b|"
            r"^(?:beyond|besides|on top of|in addition to|next to|alongside)\b",
        ),
    ),
    (
        "denied_after",
        "denies the cause named before it in the clause",
        (
            r"\b(?:explain|cause|trigger|produce|change)s? (?:nothing|little|none|neither|no)\b",
            r"\b(?:falls? (?:away|flat)|drops? out|did stop|stopped)\b",
            r"\b(?:is|are|was|were) (?:needed|required)\b",
            r"\b(?:is|was|are|were|be) (?:nothing|disabled|deactivated|switched off|turned off)\b",
            r"\b(?:is|was|are|were|be|been|can|could|has|have|looks?|seems?|works?|turned out|"
            r"proved)\b[^,;]{0,24}?"
            r"\b(?:ruled out|excluded|eliminated|dismissed|discarded|disproved|refuted|unlikely|innocent|"
            r"(?:a )?red herring|off the table|irrelevant|unrelated|fine|healthy|intact|in order|"
            r"all right|ok|okay|correct|correctly|working|false|wrong|a myth|impossible|out of the question|"
            r"a false lead|listed|connected|in place|out)\b(?! id| label|dated)",
        ),
    ),
    (
        "looked",
        "names a cause as what was examined",
        (
            r"\b(?:check(?:ed|ing|s)?|(?<!'re )(?<!you are )look(?:ed|ing)? (?:at|for|into)|test(?:ed|"
            r"ing)? for|search(?:ed|ing)? for|\b(?:i|we) (?:have |'ve |also |just |then |already )*"
            r"(?!traced|confirmed|identified|located|pinned|concluded|established|noticed|discovered)\w+ed\b|"
            r"start(?:ed|ing)? (?:from|with|at)|examin\w+|investigat\w+|consider\w*|began with|think of|"
            r"thought of|forget(?: about)?|asked (?:for|about)|question is|suspect|idea of|talk of)\b",
        ),
    ),
    (
        "open",
        "leaves the verdict open, whatever else is said",
        (
            r"\b(?:take your pick|on my list|each would do|all of (?:them|these) fit|"
            r"(?<!for )(?<!in )(?<!with )either of them|(?<!whatever )(?:one|which) of the (?:two|three)|"
            r"in (?:this|that|the following) order|candidates?\b)",
            r"\b(?:i|we) (?:do n't|do not|can n't|can not|could n't|could not) (?:yet )?"
            r"(?:know|decide|say|tell)\b",
            r"\bhave (?:all|both) (?:\w+ )?checked\b",
            r"\b(?:all|each|any|either|both)(?: of)?(?: the| them| these| those)?(?: two| three| four)?"
            r"(?: of (?:them|these|those))? (?:fits?|appl(?:y|ies)|would|could|can|may|might|are possible)\b",
            r"\band/or\b|\bor both\b|\bwhichever\b",
            r"(?<!\bof )\bwhich(?: one)?(?: of (?:them|these|those|the \w+))?(?: it is| applies)?\s*[.?!;]?$",
            r"\bany of (?:them|these|those|the (?:two|three|four|above))\b|"
            r"\bone of (?:them|these|those) (?:is|was|must|will|alone)\b|"
            r"^(?:one|some|either|which) of (?:them|these|those)\b",
            r"\b(?:\d\d? ?[:/] ?\d\d?|fifty-fifty|toss-?up|torn|waver\w*|choice|hesitat\w*|tie|draw)\b"
            r"[^.;]{0,20}\bbetween\b",
            r"\b(?:can|could|do|did) (?:not|n't) narrow\b",
            r"\b(?:(?:half|thirds?|quarters?|part|most|rest) of me|the other (?:half|third|part))\b",
            r"\bboth (?:are (?:wrong|true|at)|of (?:them|these)|contribute|play|matter|apply|lower|faults?|"
            r"problems?|causes)\b|\beach (?:of (?:them|these|which) )?(?:lowers?|contributes?|adds?|causes?|"
            r"does its (?:part|bit|share)|plays?)\b",
            r"^(?!if\b|had\b|were\b)[^;]*\b(?:i|we) (?:would|need to|have to|want to) (?:first )?"
            r"(?:need|like to|want|check|look|test|start|see)\b|"
            r"^(?!if\b|had\b|were\b)[^;]*\b(?:i'd|we'd) (?:first )?(?:need|like to|want|check|look|"
            r"test|start)\b",
            r"\b(?:please send|send me|tell me|let me know|get back to me|could you)\b",
            r"\b(?:needs?|needed|without)\b[^.;]{0,40}\b(?:to|before)(?: (?:i|we) can)? "
            r"(?:decide|tell|say|judge|know)\b",
            r"\b(?:once|until|as soon as) (?:i|we)(?: have|'ve)? (?:see|seen|had|got|know|looked|checked)\b",
            r"\b(?:at a loss|still searching|still looking|no idea)\b",
            r"\b(?:cause|reason|origin|verdict|diagnosis)\b[^,;.]{0,20}\b(?:unknown|unclear|open|undecided|"
            r"not (?:yet )?(?:known|clear|certain))\b",
            r"(?<!by )\b\d+ ?%? (?:%|percent) on\b(?! the)",
        ),
    ),
    (
        "now",
        "turns from what was to what is",
        (
            r"^(?:but |and )?(?:in (?:your|this|our) case|bei (?:ihnen|euch|dir)|chez vous|en su caso|"
            r"now|today|these days|currently|nowadays|at present|this time|meanwhile|since then|by now|"
            r"yours (?!is\b|are\b|was\b|were\b))\b",
        ),
    ),
    (
        "acquits",
        "says of what stands before it that it is not the cause",
        (
            r"\b(?:(?:can|could) (?:not|n't) be|(?:is|was) ?(?:not|n't)|never was|not) (?:the|a|our|your) "
            r"(?:\w+ )?(?:cause|reason|problem|culprit|explanation|issue)\b",
            r"\b(?:can|could|has|have|does|do|is|are|was|were) ?(?:not|n't|nothing) (?:be |to )?"
            r"(?:blame|it\b|do with|explain|account for|responsible|involved|at fault|guilty)",
            r"\b(?:is|was|are|were) (?:innocent|off the hook|not guilty|cleared|ruled out|excluded)\b",
            r"\b(?:this|that|it|which) (?:is|was) no (?:\w+ )?(?:cause|reason|culprit|explanation)\b",
        ),
    ),
    (
        "refusal",
        "says of something unnamed that it is not so",
        (
            r"(?:^|[,;:.] |\b(?:so|and|but|though) )(?:this|that|it) (?:is|was|does|did|has|can|could) ?"
            r"(?:n't|not)(?: [\w'-]+){0,2}\s*(?:$|[,;:.])",
            r"\b(?:can|could) (?:not|n't) (?:be|have been) (?:the|it|this|that|why|what|to blame)\b",
            r"\b(?:not|n't) (?:the|a|our|your|this) (?:\w+ )?(?:cause|reason|problem|culprit|"
            r"explanation|issue)\b",
            r"\b(?:neither|none) (?:of \w+ )?(?:applies|is|are|was|holds|fits)\b",
            r"^(?:(?:h+m+|er|well|uh|oh|ah)[ ,.:]+)?(?:no|nope|not so|hmm|wrong|"
            r"false)\s*[,.!:;\u2013\u2014](?!\w)",
            r"\b(?:so|therefore|hence|thus),? (?:no|not)\s*(?:$|[.,;:])",
            r"\b(?:put|set|leave|left|lay|laid) (?:that|it|this) (?:aside|behind|out)\b",
            r"\b(?:close|closed|tick|ticked|crossed) (?:that|it|this)\b",
            r"\b(?:move|moved|moving) on\b",
            r"\b(?:it|this|that) (?:has|have) been (?:there|fixed|set|in place|solved|corrected|done)\b",
            r"\b(?:nope|disagree|not here|not today|not any more|no longer)\b",
        ),
    ),
)

PATTERNS: dict[Kind, re.Pattern[str]] = {
    kind: re.compile("|".join(f"(?:{p})" for p in patterns), re.I) for kind, _, patterns in TABLE
}
