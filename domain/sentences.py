"""What refusals say, in Chinese. The code says them in English where it refuses; here is each once more, `{}` for what is put in.

A sentence is looked up when it is shown, so a rule does not know of languages. A test reads every sentence out of the code
and fails for one that is not here, and for one here that nobody says. Numbers in braces put the parts in another order.
"""

import re
from functools import cache
from typing import Final

CHINESE: Final[dict[str, str]] = {
    # --- everywhere
    "must be a canonical lower-case UUID": "必须是规范的小写 UUID",
    "every write carries a canonical lower-case UUID": "每次写入都必须带有规范的小写 UUID",
    "a canonical lower-case UUID": "必须是规范的小写 UUID",
    "a canonical lower-case UUID made by the client": "必须是由客户端生成的规范小写 UUID",
    "this is not a cursor of this list": "该游标不属于此列表",
    "this id has been used": "该编号已被使用",
    "this id is taken": "该编号已被占用",
    "this id cannot be used": "该编号不可使用",
    "this id was used for something else": "该编号已用于其他请求",
    "not JSON": "不是 JSON",
    "not a JSON object": "不是 JSON 对象",
    "there is no such {}": "没有这个 {}",
    "{} is empty": "{} 不能为空",
    # --- logging in by other means, keys, one's own data
    "API keys are for workers": "API 密钥仅供工人使用",
    "was used before, is too old, or is another phone's; sign in again": "已被使用、已过期或属于其他手机号，请重新登录",
    "too many codes, try again later": "获取验证码过于频繁，请稍后再试",
    "the signature does not prove the key": "签名与密钥不符",
    "API keys may not do this": "API 密钥无权执行此操作",
    "too many requests by this API key": "该 API 密钥的请求过多",
    "the sign-in provider does not answer; try again later": "第三方登录服务没有响应，请稍后重试",
    "another provider has answered": "应答来自其他登录服务",
    "the provider does not know this code": "登录服务不认可该授权码",
    "must be one of the addresses that are allowed here": "必须是允许的地址之一",
    "this sign-in was finished before, is too old or began elsewhere": "该登录已完成、已过期或来自其他设备",
    "API keys may not give this command": "API 密钥无权发出该命令",
    "this is not a cursor of an export": "该游标不属于数据导出",
    "log in again, then erase the account with that session": "请重新登录，再用新会话注销账号",
    "there are orders that are not over": "仍有未结束的订单",
    "must be a P-256 public key: a JWK, or SubjectPublicKeyInfo in base64": (
        "必须是 P-256 公钥：JWK 或 base64 编码的 SubjectPublicKeyInfo"
    ),
    "a second factor is set up already; operations can reset it": "已设置双重验证，运营人员可以重置",
    "too many wrong codes": "验证码错误次数过多",
    "the code is wrong, was used before, or has expired": "验证码错误、已被使用或已过期",
    "the second factor cannot be read any more; operations can reset it": "双重验证已无法读取，运营人员可以重置",
    "another account of this provider is linked already": "已绑定该服务的另一账号",
    "linked to another account": "已绑定到另一账号",
    "there are {} already, {} is the most: remove one first": "已有 {} 个，最多 {} 个，请先删除一个",
    # --- uploads and documents of workers
    "you have no upload of this id for the purpose {}": "您没有用途为 {} 的该编号上传文件",
    "you have no upload of this id for the purpose document": "您没有用途为 document 的该编号上传文件",
    "uploads for {} are of these types: {}": "用途为 {} 的上传仅限以下类型：{}",
    "an upload is not empty": "上传内容不能为空",
    "the first bytes are not those of {}": "文件开头与 {} 不符",
    "a picture that moves is not taken": "不接受动态图片",
    "{} x {} pixels, and {} is the most": "图片为 {} x {} 像素，上限为 {} 像素",
    "this is no whole picture of its type": "不是该类型的完整图片",
    "your uploads take {} bytes, and {} is the most": "您的上传共占 {} 字节，上限为 {} 字节",
    "too many uploads at once; try again with the same id": "同时上传过多，请使用相同编号重试",
    "too many uploads, try again later": "上传过于频繁，请稍后再试",
    "a licence is for a skill, and an identity document for none": "执照须对应一项技能，身份证件不对应技能",
    "this upload is in another document already": "该上传文件已用于其他证件",
    "you have handed in {} documents, and {} is the most": "您已提交 {} 份证件，上限为 {} 份",
    "the document has expired already": "证件已过期",
    "no document is good for more than ten years from now": "证件有效期自今日起最多十年",
    "the document is {}": "证件状态为 {}",
    "nobody judges their own documents": "不得审核自己的证件",
    "say until when the document is good": "请说明证件的有效期",
    "say why the document is rejected": "请说明拒绝原因",
    "quotes in this category need a document that is approved: {}": "该类别的报价需要已通过审核的证件：{}",
    "the worker has no document any more that is approved: {}": "该师傅已没有通过审核的证件：{}",
    "the worker has no document that is approved until then: {}": "该师傅在该时间之前没有有效的证件：{}",
    # --- requests
    "send an access token in the header Authorization": "请在请求头 Authorization 中发送访问令牌",
    "too many requests from this address": "来自该地址的请求过多",
    "a query parameter is given twice": "查询参数重复",
    "too many query parameters": "查询参数过多",
    "the body must be application/json": "请求体必须是 application/json",
    "the body is not JSON: {}": "请求体不是 JSON：{}",
    "bodies are taken as they are, without Content-Encoding": "请求体不得使用 Content-Encoding 编码",
    "the request did not arrive in time; try again with the same id": "请求未能及时到达，请使用相同编号重试",
    "the request is malformed": "请求格式错误",
    "the request ended early": "请求提前结束",
    "holds a number or a nesting out of range": "包含超出范围的数字或嵌套",
    "for operations only": "仅限运营人员",
    "must be an instant such as 2026-01-31T09:30:00Z": "必须是时间，例如 2026-01-31T09:30:00Z",
    "an instant such as 2026-01-31T09:30:00.000Z is wanted": "需要时间，例如 2026-01-31T09:30:00.000Z",
    "give before or after, not both": "before 与 after 只能给出一个",
    "give the write an id, or send the header Idempotency-Key": "请给出写入编号，或发送请求头 Idempotency-Key",
    "give the command an id, or send the header Idempotency-Key": "请给出命令编号，或发送请求头 Idempotency-Key",
    "give the payment an id, or send the header Idempotency-Key": "请给出支付编号，或发送请求头 Idempotency-Key",
    "at most {} users at once": "一次最多 {} 位用户",
    # --- what the decoder says
    "Expected `{}`, got `{}`": "应为 `{}`，实际为 `{}`",
    "Object missing required field `{}`": "缺少必填字段 `{}`",
    "Expected `{}` matching regex {}": "`{}` 必须符合格式 {}",
    "Expected `{}` of length >= {}": "`{}` 的长度至少为 {}",
    "Expected `{}` of length <= {}": "`{}` 的长度至多为 {}",
    "Expected `{}` >= {}": "`{}` 必须不小于 {}",
    "Expected `{}` <= {}": "`{}` 必须不大于 {}",
    "Invalid enum value {}": "无效的取值 {}",
    # --- logging in
    "must be a phone number in E.164, such as +8613800000000": "必须是 E.164 格式的手机号，例如 +8613800000000",
    "the code is wrong or has expired": "验证码错误或已过期",
    "the ticket was used or is too old": "票据已使用或已过期",
    "the token is not valid yet": "令牌尚未生效",
    # --- the platform
    "a part of the platform does not answer; try again with the same id": "平台的一部分没有响应，请使用相同编号重试",
    "not ready: {}": "尚未就绪：{}",
    "the partition has moved": "分区已迁移",
    "the store is away": "存储暂不可用",
    "too much is waiting": "等待处理的请求过多",
    "the command failed": "命令执行失败",
    "not a request": "不是请求",
    "the answer is too large to be sent": "答复过大，无法发送",
    "the stream could not be loaded": "无法加载数据流",
    "no answer within {} s ({}); the outcome is unknown, ask again with the same id": (
        "{} 秒内没有答复（{}）；结果未知，请使用相同编号重试"
    ),
    "the reminder does not stand any more": "提醒已失效",
    "the reminder is not due yet": "提醒尚未到期",
    "the state is from before the reminder was set: this is not the owner any more": "状态早于提醒的设定：此处已不是所有者",
    # --- conversations
    "there is no such conversation": "没有这个会话",
    "there is no such user": "没有这个用户",
    "there is no user {}": "没有用户 {}",
    "only the platform does this": "仅平台可执行此操作",
    "the members of an order's conversation are those of the order": "订单会话的成员由订单决定",
    "the other member has blocked you": "对方已将您拉黑",
    "this user has blocked you": "该用户已将您拉黑",
    "somebody whom you name has blocked you": "您指定的成员中有人已将您拉黑",
    "this conversation exists already": "该会话已存在",
    "an order's conversations are made by the order": "订单的会话由订单创建",
    "you must be a member of a conversation that you open": "您必须是所创建会话的成员",
    "who opened the conversation takes others out of it": "只有会话的创建者可以移除他人",
    "a conversation has at most {} members": "会话最多 {} 位成员",
    "a conversation has 2 to {} members": "会话须有 2 至 {} 位成员",
    "a conversation knows no command {}": "会话没有命令 {}",
    "a member is named twice": "成员重复",
    "name at least one other user": "请至少指定一位其他用户",
    "nobody blocks themselves": "不能拉黑自己",
    "only members leave receipts": "只有成员可以发送回执",
    "the conversation ends at offset {}": "会话止于位置 {}",
    "there is no such message in this conversation": "该会话中没有这条消息",
    "this message was written by somebody else": "这条消息由他人发送",
    "the message has been deleted": "消息已删除",
    "a message is edited at most {} times": "一条消息最多编辑 {} 次",
    "a message id is a canonical lower-case UUID": "消息编号必须是规范的小写 UUID",
    "a user id is a canonical lower-case UUID": "用户编号必须是规范的小写 UUID",
    "an upload id is a canonical lower-case UUID": "上传编号必须是规范的小写 UUID",
    "a message has a text or attachments": "消息必须有文字或附件",
    "a message has at most {} attachments": "一条消息最多 {} 个附件",
    "a text is not blank": "文字不能为空白",
    "a text has at most {} characters; this one has {}": "文字最多 {} 个字符，此处有 {} 个",
    "an emoji has 1 to {} characters": "表情须有 1 至 {} 个字符",
    "an offset is not negative": "位置不能为负",
    "the block is being changed by other requests: repeat this one": "拉黑状态正被其他请求更改，请重试",
    "{} of {} conversations do not know of it yet: repeat the request": "{1} 个会话中有 {0} 个尚未生效，请重试",
    "a conversation is muted until a time that is yet to come": "免打扰的截止时间必须在将来",
    "say what to search for": "请输入搜索内容",
    "a query has at most {} characters; this one has {}": "搜索内容最多 {} 个字符，此处有 {} 个",
    "there is no letter and no digit to search for": "搜索内容中没有文字或数字",
    # --- orders
    "no such order": "没有这个订单",
    "there is no command {}": "没有命令 {}",
    "{} is not for you": "您无权执行 {}",
    "{} is not possible": "无法执行 {}",
    "{} is not possible while the order is {}": "订单处于 {1} 状态时无法执行 {0}",
    "you decided on version {}, and it is {} now": "您依据的是版本 {}，当前版本为 {}",
    "say which version of the order you decide on": "请说明您依据的订单版本",
    "the payload is not a JSON object in UTF-8": "内容不是 UTF-8 编码的 JSON 对象",
    "an order needs a customer with a verified phone": "下单的客户须已验证手机号",
    "describe the work in {} characters or more, or add a photo": "请用至少 {} 个字符描述工作内容，或添加照片",
    "address is empty": "地址不能为空",
    "{} orders are open, and {} is the limit": "已有 {} 个进行中的订单，上限为 {} 个",
    "there is nothing to be reminded of": "没有需要提醒的事项",
    # --- quotes
    "the site is {} km from your base, and your radius is {} km": "现场距您 {} 公里，您的服务半径为 {} 公里",
    "{} quotes are active, and that is the limit": "您有 {} 份有效报价，已达上限",
    "the customer has blocked you": "客户已将您拉黑",
    "you have blocked the customer": "您已将该客户拉黑",
    "at most {} milestones": "最多 {} 个阶段",
    "the first milestone is at most {} % of {}": "首个阶段最多为 {1} 的 {0}%",
    "the quote would have expired already": "报价的有效期已过",
    "this id has been used; a new quote needs a new one": "该编号已被使用，新报价需要新编号",
    "revise your quote {}, or withdraw it first": "请修改您的报价 {}，或先将其撤回",
    "the revision must be above {}": "修订号必须大于 {}",
    "at most {} revisions": "最多修订 {} 次",
    "this order takes no more quotes": "该订单不再接受报价",
    "there is no such quote": "没有这份报价",
    "the quote is {}": "报价状态为 {}",
    "revision {} was replaced by {}": "修订 {} 已被 {} 取代",
    "the quote has expired": "报价已过期",
    # --- money
    "there is no rail {}": "没有支付渠道 {}",
    "use one of: {}": "请使用以下之一：{}",
    "{} {} was asked for, {} {} was held": "应付 {} {}，实际冻结 {} {}",
    "milestone {} is the one to be paid now": "当前应支付的是阶段 {}",
    "a payment for this milestone is being processed": "该阶段的付款正在处理中",
    "a payment for milestone {} is being processed": "阶段 {} 的付款正在处理中",
    "too many attempts to pay": "付款尝试次数过多",
    "there is no such payment": "没有这笔付款",
    "this id belongs to another payment": "该编号属于另一笔付款",
    "this payment is over": "该付款已结束",
    "{} is owed, {} was refunded": "应退 {}，实退 {}",
    "a dispute holds the money of milestone {}": "阶段 {} 的款项因争议被冻结",
    "a dispute holds money of this order": "该订单的款项因争议被冻结",
    "a dispute is open": "存在未结的争议",
    "the rating window is still open": "评价期尚未结束",
    "the rating window is over": "评价期已结束",
    "send a valid {}": "请发送有效的 {}",
    "the signature does not belong to this body": "签名与请求体不符",
    "the signature is too old, or of the future": "签名已过期或来自未来",
    "the body is not a payment event": "请求体不是支付事件",
    # --- disputes
    "there is no such milestone": "没有这个阶段",
    "a dispute over milestone {} is open": "阶段 {} 存在未结的争议",
    "this order takes no more disputes": "该订单不再接受争议",
    "milestone {} can no longer be disputed": "阶段 {} 已不能再提出争议",
    "{} is what can be disputed": "可争议的金额为 {}",
    "there is no such dispute": "没有这个争议",
    "this dispute does not wait for your answer": "该争议不需要您的答复",
    "the dispute has been decided": "争议已裁决",
    "the dispute was answered": "争议已答复",
    "the two parts must sum to {}": "两部分之和必须为 {}",
    "nothing is held for milestone {}": "阶段 {} 没有被冻结的款项",
    # --- visits
    "not the code; {} tries left": "签到码错误，还可尝试 {} 次",
    "no tries left: the customer can confirm the check-in": "已无剩余尝试次数：可由客户确认签到",
    "there is no such visit": "没有这次上门",
    "the visit is {}": "上门状态为 {}",
    "this order takes no more visits": "该订单不再安排上门",
    "the end is not after the start": "结束时间必须晚于开始时间",
    "a slot is at most {} hours": "时段最长 {} 小时",
    "a slot begins {} minutes from now or later": "时段须在 {} 分钟之后开始",
    "the money is held safely only until {}": "款项仅安全冻结至 {}",
    "who proposes a slot cannot confirm it": "提议时段的一方不能自行确认",
    "the slot is too near by now; propose a later one": "时段已过近，请提议更晚的时段",
    "the slot is over": "时段已过",
    "each side may reschedule {} times": "每方最多改期 {} 次",
    "the fix is {} s old, and 30 s is the limit": "定位已是 {} 秒前，上限为 30 秒",
    "accurate to {} m, and {} m is the limit": "定位精度为 {} 米，上限为 {} 米",
    "{} m from the site, and {} m is the limit": "距现场 {} 米，上限为 {} 米",
    "a trip to this visit may start from {}": "最早可于 {} 出发",
    "the worker may still come until {}": "师傅在 {} 之前仍可到达",
    "the worker has another job at that time": "师傅在该时间已有其他工作",
    "at most {} fixes at once": "一次最多 {} 个定位",
    # --- work
    "milestone {} is {}": "阶段 {} 的状态为 {}",
    "milestone {} is {} and cannot be left out": "阶段 {} 的状态为 {}，不能省略",
    "milestone {} is paid: add what comes on top as a milestone of its own": "阶段 {} 已付款：新增内容请另设阶段",
    "this category asks for {} photos": "该类别需要 {} 张照片",
    "submission {} is the one to be judged": "应评判的是提交 {}",
    "no more rounds of changes; open a dispute instead": "已无更改次数，请改为提出争议",
    "this order takes no more changes": "该订单不再接受变更",
    "the contract is at revision {}": "合同当前为修订 {}",
    "a change leaves some work to do; else submit the completion": "变更须留有待完成的工作，否则请提交完工",
    "there is no such change": "没有这项变更",
    "this change is not yours to accept now": "您现在不能接受该变更",
    "{} is in escrow for milestone {}": "阶段 {1} 的托管金额为 {0}",
}

LANGUAGES: Final = ("en", "zh")
"""The first is the one that everything is written in."""


def language_of(tag: str) -> str:
    """Our language for a language tag (BCP 47) such as `zh-Hans-CN`; empty for one that is not spoken here."""
    language = re.split(r"[-_]", tag.strip(), maxsplit=1)[0].lower()
    return language if language in LANGUAGES else ""


LONGEST: Final = 500
"""Characters of a sentence that is looked for among those with parts; a longer one stays as it is."""


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """What says most by itself comes first: `milestone {} is {}` fits a good deal."""
    known = sorted((text for text in CHINESE if "{}" in text), key=lambda text: -len(text.replace("{}", "")))
    return tuple((re.compile(re.escape(text).replace(r"\{\}", "(.+?)"), re.DOTALL), CHINESE[text]) for text in known)


def in_language(sentence: str, locale: str) -> str:
    """The sentence in that language (`en`, `zh`); as it is where it is not known."""
    if locale != "zh":
        return sentence
    known = CHINESE.get(sentence)
    if known is not None or len(sentence) > LONGEST:
        return known or sentence
    for pattern, said in _patterns():
        match = pattern.fullmatch(sentence)
        if match is not None:
            return said.format(*match.groups())
    return sentence
